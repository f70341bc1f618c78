"""Switch EMA."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.averaging.ema import DECAY, EmaSettings
from lawa_exp.axes.feedback.settings import FeedbackSettings
from lawa_exp.config.rules import setting, steps


@dataclass(frozen=True)
class SwitchEmaSettings(FeedbackSettings):
    """An EMA of every step, copied over the live weights every `every` steps (Li et al. 2024: after each epoch)."""

    decay: float | str = setting(
        DECAY,
        "how much of the average an observation keeps: a number below 1, half_life:STEPS, half_life:SHARE% or lawa:K",
    )
    every: int = setting(steps(1), "steps after which the EMA replaces the live weights")
    start: int = setting(steps(), "the first step that the EMA observes")

    @property
    def averager(self) -> EmaSettings:
        return EmaSettings(self.decay, 1, self.start, False)
