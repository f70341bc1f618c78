"""The optimizers: a name and a typed dataclass for each (`OptimizerSettings`); torch is imported when one is built.

The rate is set before each update: of a parameter group, the schedule's times its `rate_ratio` (default 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.optimizer.settings import OptimizerSettings

OPTIMIZERS: Table[OptimizerSettings] = Table(
    __name__,
    adamw="adamw:AdamW",
    sgd="sgd:SGD",
    lars="lars:LARS",
    lamb="lamb:LAMB",
    schedule_free="schedule_free:ScheduleFree",
    muon="muon:Muon",
    custom="custom:CustomOptimizer",
)
