"""LAWA: after step t the mean of the snapshots at the k latest multiples of spacing; undefined before k exist.

Closed form: with m = floor(t / spacing), (1/k) * sum over j = m-k+1 .. m of theta(j * spacing), where every
j * spacing is at least max(1, start).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lawa_exp.averaging import LawaSettings, observes
from lawa_exp.averaging.window import Window, mean


class Lawa:
    """Reads the run's window; holds no weights of its own."""

    def __init__(self, settings: LawaSettings, averaged: frozenset[str], window: Window) -> None:
        self.settings, self.averaged, self.window = settings, averaged, window
        self.step = 0
        window.add_reader(settings.needed)

    def update(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        self.step = step
        if observes(self.settings, step):
            self.window.take(step, tensors)

    def average(self) -> dict[str, Tensor] | None:
        needed = self.settings.needed(self.step)
        if len(needed) < self.settings.k or any(s not in self.window.snapshots for s in needed):
            return None
        return mean([self.window.snapshots[s].tensors for s in needed], self.averaged)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The window's snapshots are saved with the run."""
        return {}, {"step": self.step}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self.step = scalars["step"]
