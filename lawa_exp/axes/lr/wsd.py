"""Warm-up, stable, decay."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.axes.lr.constant import Constant
from lawa_exp.axes.lr.decaying import SHAPES, Decaying
from lawa_exp.axes.lr.schedule import UNIT
from lawa_exp.config.rules import defaulted, number, one_of, setting, steps
from lawa_exp.seams.batches import Batches


@dataclass(frozen=True)
class WSD(Decaying):
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM): the peak, then a decay over `decay_steps`."""

    peak: float = setting(number(above=0), "the learning rate after the warm-up, the highest one")
    warmup_steps: int = setting(steps(), "steps over which the rate rises linearly from zero to the peak")
    horizon: int = setting(defaulted(steps(1)), "the last step that the schedule is planned for; null: the budget")
    unit: str = setting(UNIT, "what the warm-up and the schedule's progress are measured in")
    decay_steps: int = setting(steps(at_end=True), "length of the final decay, in the last steps before the horizon")
    shape: str = setting(one_of(*SHAPES, "exponential"), "the curve of the final decay")
    final_ratio: float = setting(number(low=0, high=1), "the rate at the horizon, as a share of the peak")

    def stable_part(self) -> Constant:
        return Constant(self.peak, self.warmup_steps, self.horizon, self.unit)

    def plateau(self, batches: Batches, step: int) -> float:
        return self.peak
