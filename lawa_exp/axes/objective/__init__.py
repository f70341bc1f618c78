"""What is trained: a name and a typed dataclass for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.objective.settings import ObjectiveSettings

OBJECTIVES: Table[ObjectiveSettings] = Table(
    __name__,
    task="task:TaskSettings",
    custom="custom:CustomObjective",
)
