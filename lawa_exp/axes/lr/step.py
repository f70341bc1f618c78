"""A factor at given steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.choice import Planned
from lawa_exp.axes.lr.schedule import UNIT, Schedule
from lawa_exp.config.rules import defaulted, list_of, number, setting, steps
from lawa_exp.seams.batches import Batches
from lawa_exp.system.errors import UserError


@dataclass(frozen=True)
class Steps(Schedule):
    """The peak times `factor` for every one of the steps `at` that is over (the classical ResNet schedule)."""

    uses_horizon: ClassVar[bool] = False
    peak: float = setting(number(above=0), "the learning rate after the warm-up, the highest one")
    warmup_steps: int = setting(steps(), "steps over which the rate rises linearly from zero to the peak")
    horizon: int = setting(defaulted(steps(1)), "the last step that the schedule is planned for; null: the budget")
    unit: str = setting(UNIT, "what the warm-up and the schedule's progress are measured in")
    at: tuple[int, ...] = setting(
        list_of(steps(1), "a list of steps"), "the steps after which the rate is multiplied by `factor`"
    )
    factor: float = setting(number(above=0, high=1), "what the rate is multiplied by at each of `at`")

    def fits(self) -> None:
        super().fits()
        if list(self.at) != sorted(set(self.at)):
            raise UserError(f"lr.at={list(self.at)}: expected ascending steps")

    def warnings(self, planned: Planned) -> Iterator[str]:
        steps = planned.config.steps
        yield from (f"lr.at: step {s:,} is beyond the budget of {steps:,} steps" for s in self.at if s >= steps)

    def value(self, batches: Batches, step: int) -> float:
        return self.peak * self.factor ** sum(step > milestone for milestone in self.at)
