"""An average that goes back into training, at work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lawa_exp.averaging import build_averager
from lawa_exp.axes.feedback.settings import FeedbackSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Feedback:
    """Observes the live weights and writes their average back, from a window of its own: what training went through."""

    def __init__(self, settings: FeedbackSettings, averaged: frozenset[str], optimizer: torch.optim.Optimizer) -> None:
        from lawa_exp.averaging.window import Window

        self.settings, self.averaged, self.optimizer = settings, averaged, optimizer
        self.window = Window()
        self.averager = build_averager(settings.averager, averaged, self.window)

    def begin(self, live: Mapping[str, Tensor]) -> None:
        """Before the first step of a training."""
        from lawa_exp.averaging.accumulator import Accumulator

        if self.settings.from_initial:
            assert isinstance(self.averager, Accumulator), "a window takes in no initial weights"
            self.averager.begin(0, live)

    def due(self, step: int) -> bool:
        """Whether the live weights may change after `step`."""
        return bool(step % self.settings.every == 0)

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
