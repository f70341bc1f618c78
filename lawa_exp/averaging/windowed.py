"""The state of an average of the latest k snapshots: which step it is after. The window has the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lawa_exp.averaging.arithmetic import weighted_mean
from lawa_exp.averaging.settings import WindowSettings, observes
from lawa_exp.averaging.window import Window


class WindowAverage:
    """An `Averager` that reads the run's window, and keeps no weights of its own."""

    def __init__(
        self,
        settings: WindowSettings,
        averaged: frozenset[str],
        window: Window,
        statistics_names: frozenset[str] = frozenset(),
    ) -> None:
        self.settings, self.averaged, self.statistics_names = settings, averaged, statistics_names
        self.window = window
        self.step = 0
        window.add_reader(settings.needed)

    def update(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        self.step = step
        if observes(self.settings, step):
            self.window.take(step, tensors, self.averaged)

    @property
    def snapshot_steps(self) -> list[int]:
        """The steps that it needs and the window has, oldest first."""
        return [s for s in self.settings.needed(self.step) if s in self.window.snapshots]

    @property
    def defined(self) -> bool:
        return len(self.snapshot_steps) == self.settings.k

    def average(self) -> dict[str, Tensor] | None:
        return self._mean(self.averaged) if self.defined else None

    def statistics(self) -> dict[str, Tensor]:
        return self._mean(self.statistics_names, self.statistics_names)

    def _mean(self, averaged: frozenset[str], names: frozenset[str] | None = None) -> dict[str, Tensor]:
        """names: of what is wanted (None: all)."""
        needed = self.settings.needed(self.step)
        snapshots = [self.window.snapshots[s].tensors for s in needed]
        if names is not None:
            snapshots = [{n: t for n, t in tensors.items() if n in names} for tensors in snapshots]
        return weighted_mean(snapshots, self.settings.coefficients(needed), averaged)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"step": self.step}  # the window's snapshots are saved with the run

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self.step = scalars["step"]
