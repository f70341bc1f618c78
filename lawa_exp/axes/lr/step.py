"""A factor at given steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lawa_exp.axes.batch.batches import Batches
from lawa_exp.axes.lr.schedule import UNIT, Schedule
from lawa_exp.config.rules import Rule, number, optional, setting, steps


@dataclass(frozen=True)
class Steps(Schedule):
    """The peak times `factor` for every one of the steps `at` that is over (the classical ResNet schedule)."""

    uses_horizon: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("at",)
    peak: float = setting(number(above=0))
    warmup_steps: int | str = setting(steps())
    horizon: int | str | None = setting(optional(steps(1)))
    unit: str = setting(UNIT)
    at: Any = setting(Rule("a list of steps", lambda v: tuple(steps(1).parse(s) for s in list(v))))
    factor: float = setting(number(above=0, high=1))

    def value(self, batches: Batches, step: int) -> float:
        return self.peak * self.factor ** sum(step > milestone for milestone in self.at)
