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

from lawa_exp.axes.dataset.digits import DigitsSettings
from lawa_exp.axes.dataset.image_files import (
    ArraysSettings,
    Cifar10Settings,
    Cifar100Settings,
    FashionMnistSettings,
    MnistSettings,
)
from lawa_exp.axes.dataset.image_folder import ImageFolderSettings
from lawa_exp.axes.dataset.masked import MaskedLMSettings, PydocsMLMSettings
from lawa_exp.axes.dataset.text import PydocsSettings, TextSettings
from lawa_exp.axes.dataset.tokens import OpenWebTextSettings, TokensSettings
from lawa_exp.axes.dataset.words import WordsSettings

DATASETS: dict[str, type] = {
    "pydocs": PydocsSettings,
    "text": TextSettings,
    "tokens": TokensSettings,
    "openwebtext": OpenWebTextSettings,
    "digits": DigitsSettings,
    "mnist": MnistSettings,
    "fashion_mnist": FashionMnistSettings,
    "cifar10": Cifar10Settings,
    "cifar100": Cifar100Settings,
    "image_folder": ImageFolderSettings,
    "masked_lm": MaskedLMSettings,
    "pydocs_mlm": PydocsMLMSettings,
    "words": WordsSettings,
    "arrays": ArraysSettings,
}
