"""Where the rows of a training go: a name and a typed dataclass for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.config.shared import Logger

LOGGERS: Table[Logger] = Table(
    __name__,
    jsonl="jsonl:JsonlLogger",
    wandb="wandb.settings:WandbLogger",
)
