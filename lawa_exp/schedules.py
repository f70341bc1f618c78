"""Learning rates as pure functions of progress.

Convention: `rate(step)` is the rate of the update that completes `step` (1, 2, ...). Warm-up is linear and ends at the
peak: peak * step / warmup_steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from lawa_exp.config import UserError, number, optional, setting, steps


@dataclass(frozen=True)
class Constant:
    """The peak rate after the warm-up."""

    uses_horizon: ClassVar[bool] = False
    peak: float = setting(number(above=0))
    warmup_steps: int | str = setting(steps())
    horizon: int | str | None = setting(optional(steps(1)))

    def after_warmup(self, progress: float) -> float:
        return self.peak


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the peak to `final_ratio` * peak at the horizon, constant after it (Loshchilov 2017)."""

    uses_horizon: ClassVar[bool] = True
    peak: float = setting(number(above=0))
    warmup_steps: int | str = setting(steps())
    horizon: int | str | None = setting(optional(steps(1)))
    final_ratio: float = setting(number(low=0, high=1))

    def after_warmup(self, progress: float) -> float:
        low = self.final_ratio * self.peak
        return low + 0.5 * (self.peak - low) * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, type] = {"constant": Constant, "cosine": Cosine}


def rate(schedule: Any, step: int) -> float:
    """The learning rate of the update that completes `step`; the schedule's steps are resolved integers."""
    if step <= schedule.warmup_steps:
        return schedule.peak * step / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.horizon - schedule.warmup_steps)
    return schedule.after_warmup(min(1.0, progress))


def check(schedule: Any) -> None:
    """A warm-up longer than the horizon is an error, where the schedule has one."""
    if schedule.uses_horizon and schedule.warmup_steps > schedule.horizon:
        raise UserError(
            f"lr.warmup_steps={schedule.warmup_steps}: expected at most the horizon, {schedule.horizon} steps "
            "(lr.horizon, else the budget)"
        )
