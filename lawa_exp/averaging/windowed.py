"""The averagers of the latest k snapshots: lawa and wma."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lawa_exp.averaging.arithmetic import weighted_mean
from lawa_exp.averaging.settings import observes
from lawa_exp.averaging.window import Window


class WindowAverage:
    """Reads the run's window; holds no weights of its own."""

    def __init__(self, settings: Any, averaged: frozenset[str], window: Window) -> None:
        self.settings, self.averaged, self.window = settings, averaged, window
        self.step = 0
        window.add_reader(settings.needed)

    def update(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        self.step = step
        if observes(self.settings, step):
            self.window.take(step, tensors, self.averaged)

    @property
    def held(self) -> list[int]:
        """The steps of the window whose snapshots exist, oldest first."""
        return [s for s in self.settings.needed(self.step) if s in self.window.snapshots]

    @property
    def defined(self) -> bool:
        return len(self.held) == self.settings.k

    def average(self) -> dict[str, Tensor] | None:
        """New tensors in the weights' own dtype, or None while fewer than k snapshots exist."""
        if not self.defined:
            return None
        needed = self.settings.needed(self.step)
        snapshots = [self.window.snapshots[s].tensors for s in needed]
        return weighted_mean(snapshots, self.settings.coefficients(needed), self.averaged)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The window's snapshots are saved with the run."""
        return {}, {"step": self.step}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self.step = scalars["step"]
