"""The data sets: a name and a typed dataclass with `open(context)` for each; numpy only.

An open data set has `sizes` (samples of each split; one epoch of train), `vocab_size`, `fingerprint` (of its content),
`note` (what a reader of results must know of its splits), `tokens_per_sample`, and
`train_batch(seed, first, count)` and `eval_batch(split, indices)`, which give (inputs, targets).
"""

from lawa_exp.data.text import PydocsSettings, TextSettings
from lawa_exp.data.tokens import OpenWebTextSettings, TokensSettings

DATASETS: dict[str, type] = {
    "pydocs": PydocsSettings,
    "text": TextSettings,
    "tokens": TokensSettings,
    "openwebtext": OpenWebTextSettings,
}
