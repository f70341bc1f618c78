"""A feedback from outside."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lawa_exp.averaging import AveragerSettings
from lawa_exp.averaging.custom import made_averager
from lawa_exp.axes.feedback.settings import FeedbackSettings
from lawa_exp.config.rules import arguments, boolean, one_of, setting, steps, text
from lawa_exp.system.errors import UserError


@dataclass(frozen=True)
class CustomFeedback(FeedbackSettings):
    """Every `every` steps training goes on from the average of `builder(**args)`, an averager's settings.

    from_initial: whether that begins with the initial weights, which a window cannot.
    """

    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()
    every: int = setting(steps(1), "steps after which training goes on from the average")
    optimizer: str = setting(one_of("keep", "reset"), "what happens to the optimizer's state: keep it, or reset it")
    from_initial: bool = setting(boolean(), "whether the average begins with the initial weights")  # type: ignore[misc]

    @cached_property
    def averager(self) -> AveragerSettings:  # type: ignore[override]
        settings = made_averager(self, "feedback")
        if self.from_initial and settings.windowed:
            raise UserError(
                f"feedback.from_initial=true: a window takes in no initial weights, and {self.builder} gives one; "
                "choose false"
            )
        return settings
