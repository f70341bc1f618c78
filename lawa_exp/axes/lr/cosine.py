"""Half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lawa_exp.axes.lr.schedule import UNIT, Schedule
from lawa_exp.config.rules import defaulted, number, setting, steps
from lawa_exp.seams.batches import Batches


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the peak to `final_ratio` * peak at the horizon, constant after it (Loshchilov 2017)."""

    peak: float = setting(number(above=0), "the learning rate after the warm-up, the highest one")
    warmup_steps: int = setting(steps(), "steps over which the rate rises linearly from zero to the peak")
    horizon: int = setting(defaulted(steps(1)), "the last step that the schedule is planned for; null: the budget")
    unit: str = setting(UNIT, "what the warm-up and the schedule's progress are measured in")
    final_ratio: float = setting(number(low=0, high=1), "the rate at the horizon, as a share of the peak")

    def value(self, batches: Batches, step: int) -> float:
        low = self.final_ratio * self.peak
        return low + 0.5 * (self.peak - low) * (1 + math.cos(math.pi * self.progress(batches, step)))
