"""What changes gradients and weights around the optimizer's update: a name and a typed dataclass for each, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.update.settings import UpdateSettings

UPDATES: Table[UpdateSettings] = Table(
    __name__,
    custom="custom:CustomUpdate",
)
