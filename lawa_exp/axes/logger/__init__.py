"""Where the rows of a training go: a name and a typed dataclass for each."""

from __future__ import annotations

from lawa_exp.axes.logger.wandb.settings import WandbLogger
from lawa_exp.config.shared import Logger

LOGGERS: dict[str, type] = {"jsonl": Logger, "wandb": WandbLogger}
