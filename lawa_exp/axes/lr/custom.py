"""A schedule from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lawa_exp.axes.lr.schedule import UNIT, Schedule
from lawa_exp.config.rules import arguments, boolean, defaulted, number, setting, steps, text
from lawa_exp.seams.batches import Batches


@dataclass(frozen=True)
class Custom(Schedule):
    """`builder(schedule, **args)`, a function (batches, step) -> the rate after the warm-up.

    schedule: these settings, with `peak`, `warmup_steps`, `horizon`, `unit` and `progress(batches, step)`.
    uses_horizon: whether the rate depends on the horizon, which then is in the id; without, `horizon` is None.
    """

    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()
    peak: float = setting(number(above=0), "the learning rate after the warm-up, the highest one")
    warmup_steps: int = setting(steps(), "steps over which the rate rises linearly from zero to the peak")
    horizon: int = setting(defaulted(steps(1)), "the last step that the schedule is planned for; null: the budget")
    unit: str = setting(UNIT, "what the warm-up and the schedule's progress are measured in")
    uses_horizon: bool = setting(boolean(), "whether the rate depends on the horizon")  # type: ignore[misc]

    @cached_property
    def function(self) -> Callable[[Batches, int], float]:
        from lawa_exp.storage import custom

        known = self if self.uses_horizon else dataclasses.replace(self, horizon=None)  # type: ignore[arg-type]
        expected = "a function (batches, step) -> rate"
        function: Callable[[Batches, int], float] = custom.made(self, "lr", known, expected=expected, fits=callable)
        return function

    def value(self, batches: Batches, step: int) -> float:
        return float(self.function(batches, step))
