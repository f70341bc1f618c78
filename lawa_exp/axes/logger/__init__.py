"""Where the rows of a training go besides its own files: a name and a typed dataclass for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.logger.settings import LoggerSettings

LOGGERS: Table[LoggerSettings] = Table(
    __name__,
    wandb="wandb.settings:WandbLogger",
    tensorboard="tensorboard:TensorBoardLogger",
    csv="csv:CsvLogger",
)
