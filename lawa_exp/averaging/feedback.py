"""Averages that go back into training: lookahead, switch_ema, lawa_restart. They determine the live weights.

Each is an averager and a period: after the optimizer's update the averager observes, and every `every` steps its
average, where it is defined, is copied over the live parameters (buffers stay). Other averagers and snapshots see the
weights after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lawa_exp.averaging.settings import DECAY, EmaSettings, LawaSettings, build_averager
from lawa_exp.config import integer, number, one_of, setting, steps

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class NoFeedback:
    """Training is only observed."""


@dataclass(frozen=True)
class LookaheadSettings:
    """Every `every` steps slow <- slow + alpha * (live - slow), live <- slow; slow starts as the initial weights.

    Zhang et al. 2019, algorithm 1 (their k is `every`); the optimizer's state is kept.
    """

    every: int | str = setting(steps(1))
    alpha: float = setting(number(above=0, high=1))
    optimizer = "keep"
    from_initial = True

    @property
    def averager(self) -> EmaSettings:
        return EmaSettings(1 - self.alpha, self.every, 0, False)


@dataclass(frozen=True)
class SwitchEmaSettings:
    """An EMA of every step, copied over the live weights every `every` steps (Li et al. 2024: after each epoch)."""

    decay: float | str = setting(DECAY)
    every: int | str = setting(steps(1))
    start: int | str = setting(steps())
    optimizer = "keep"
    from_initial = False

    @property
    def averager(self) -> EmaSettings:
        return EmaSettings(self.decay, 1, self.start, False)


@dataclass(frozen=True)
class LawaRestartSettings:
    """Every `every` steps training goes on from the LAWA average, with the optimizer's state kept or reset.

    What Kaddour's published code does where the averaged model is not kept apart. Snapshots are taken before the copy.
    """

    k: int = setting(integer(1))
    spacing: int | str = setting(steps(1))
    every: int | str = setting(steps(1))
    start: int | str = setting(steps())
    optimizer: str = setting(one_of("keep", "reset"))
    from_initial = False

    @property
    def averager(self) -> LawaSettings:
        return LawaSettings(self.k, self.spacing, self.start)


FEEDBACK: dict[str, type] = {
    "none": NoFeedback,
    "lookahead": LookaheadSettings,
    "switch_ema": SwitchEmaSettings,
    "lawa_restart": LawaRestartSettings,
}


class Feedback:
    """One of them at work. Its averager has a window of its own: it holds what training went through."""

    def __init__(self, settings: Any, averaged: frozenset[str], optimizer: torch.optim.Optimizer) -> None:
        from lawa_exp.averaging.window import Window

        self.settings, self.averaged, self.optimizer = settings, averaged, optimizer
        self.window = Window()
        self.averager = build_averager(settings.averager, averaged, self.window)

    def begin(self, live: Mapping[str, Tensor]) -> None:
        """Before the first step of a training."""
        if self.settings.from_initial:
            self.averager.begin(0, live)

    def due(self, step: int) -> bool:
        """Whether the live weights may change after `step`."""
        return step % self.settings.every == 0

    def update(self, step: int, live: Mapping[str, Tensor]) -> None:
        """After the optimizer's update: observes and, where it is due, changes `live` in place."""
        self.averager.update(step, live)
        if not self.due(step):
            return
        weights = self.averager.average()
        if weights is None:
            return
        for name in sorted(self.averaged & live.keys()):
            live[name].copy_(weights[name])
        if self.settings.optimizer == "reset":
            self.optimizer.state.clear()
