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

    peak: float = setting(number(above=0))
    warmup_steps: int = setting(steps())
    horizon: int = setting(defaulted(steps(1)))
    unit: str = setting(UNIT)
    final_ratio: float = setting(number(low=0, high=1))

    def value(self, batches: Batches, step: int) -> float:
        low = self.final_ratio * self.peak
        return low + 0.5 * (self.peak - low) * (1 + math.cos(math.pi * self.progress(batches, step)))
