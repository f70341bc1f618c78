"""The data sets: a name and a typed dataclass with `open(context)` for each; numpy only.

An open data set has `sizes` (samples of each split; one epoch of train), `fingerprint` (of its content), `sampled`
(files that this does not read whole, see `content`), `note` (what a reader of results must know of its splits),
`tokens_per_sample`, `sample` (what one is, in words), `unit` (what a loss is the mean over), and `train_batch(seed,
first, count)` and `eval_batch(split, indices)`, which give (inputs, targets); `train_targets(seed, first, count)` is
how many targets of a train batch count, and `noise_batch(seed, first, count)` gives seeded noise in place of a train
batch, with as many targets. One of images also gives batches as `train_parts` and `eval_parts`, bytes that `finished`
makes inputs of on the device. The settings' `inputs` say what it holds: tokens or masked tokens, and then it has a
`vocab_size`, or images, and then it has `channels`, `image_size` and `classes` (None elsewhere).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.dataset.base import BaseSettings

DATASETS: Table[BaseSettings] = Table(
    __name__,
    pydocs="text:PydocsSettings",
    text="text:TextSettings",
    tokens="tokens:TokensSettings",
    openwebtext="tokens:OpenWebTextSettings",
    digits="digits:DigitsSettings",
    mnist="image_files:MnistSettings",
    fashion_mnist="image_files:FashionMnistSettings",
    cifar10="image_files:Cifar10Settings",
    cifar100="image_files:Cifar100Settings",
    image_folder="image_folder:ImageFolderSettings",
    masked_lm="masked:MaskedLMSettings",
    pydocs_mlm="masked:PydocsMLMSettings",
    words="words:WordsSettings",
    arrays="image_files:ArraysSettings",
)
