"""The inverse square root of what was seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.lr.schedule import UNIT, Schedule
from lawa_exp.config.rules import defaulted, number, optional, setting, steps
from lawa_exp.seams.batches import Batches


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """peak * sqrt(a / (n - n_w + a)), n seen, n_w at the end of the warm-up, a = `timescale`, null: the warm-up itself.

    With a = n_w it is peak * sqrt(n_w / n) (Vaswani et al. 2017); Meterez et al. (2026) take a fixed a.
    """

    uses_horizon: ClassVar[bool] = False
    peak: float = setting(number(above=0), "the learning rate after the warm-up, the highest one")
    warmup_steps: int = setting(steps(), "steps over which the rate rises linearly from zero to the peak")
    horizon: int = setting(defaulted(steps(1)), "the last step that the schedule is planned for; null: the budget")
    unit: str = setting(UNIT, "what the warm-up and the schedule's progress are measured in")
    timescale: int | None = setting(optional(steps(1)), "steps after which the decay sets in; null: the warm-up")

    def value(self, batches: Batches, step: int) -> float:
        warmed = batches.seen(self.unit, self.warmup_steps)
        a = batches.seen(self.unit, self.timescale or max(1, self.warmup_steps))
        return self.peak * math.sqrt(a / (batches.seen(self.unit, step) - warmed + a))
