"""Switch EMA."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.averaging.ema import DECAY, EmaSettings
from lawa_exp.axes.feedback.settings import FeedbackSettings
from lawa_exp.config.rules import setting, steps


@dataclass(frozen=True)
class SwitchEmaSettings(FeedbackSettings):
    """An EMA of every step, copied over the live weights every `every` steps (Li et al. 2024: after each epoch)."""

    decay: float | str = setting(DECAY)
    every: int = setting(steps(1))
    start: int = setting(steps())

    @property
    def averager(self) -> EmaSettings:
        return EmaSettings(self.decay, 1, self.start, False)
