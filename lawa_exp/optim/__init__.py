"""The optimizers: a name and a typed dataclass with `build(model)`; torch is imported only when one is built."""

from lawa_exp.optim.adamw import AdamW

OPTIMIZERS: dict[str, type] = {"adamw": AdamW}
