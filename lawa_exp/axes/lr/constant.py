"""A schedule without a decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.lr.schedule import UNIT, Schedule
from lawa_exp.config.rules import defaulted, number, setting, steps
from lawa_exp.seams.batches import Batches


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak rate after the warm-up."""

    uses_horizon: ClassVar[bool] = False
    peak: float = setting(number(above=0), "the learning rate after the warm-up, the highest one")
    warmup_steps: int = setting(steps(), "steps over which the rate rises linearly from zero to the peak")
    horizon: int = setting(defaulted(steps(1)), "the last step that the schedule is planned for; null: the budget")
    unit: str = setting(UNIT, "what the warm-up and the schedule's progress are measured in")

    def value(self, batches: Batches, step: int) -> float:
        return self.peak
