"""Lookahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.averaging import EmaSettings
from lawa_exp.axes.feedback.settings import FeedbackSettings
from lawa_exp.config.rules import number, setting, steps


@dataclass(frozen=True)
class LookaheadSettings(FeedbackSettings):
    """Every `every` steps slow <- slow + alpha * (live - slow), live <- slow; slow starts as the initial weights.

    Zhang et al. 2019, algorithm 1 (their k is `every`); the optimizer's state is kept.
    """

    every: int = setting(steps(1), "steps between two synchronisations (k in the paper)")
    alpha: float = setting(number(above=0, high=1), "how far the slow weights move towards the live ones")
    from_initial: ClassVar[bool] = True

    @property
    def averager(self) -> EmaSettings:
        return EmaSettings(1 - self.alpha, self.every, 0, False)
