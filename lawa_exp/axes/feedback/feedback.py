"""An average that goes back into training, at work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lawa_exp.averaging import build_averager
from lawa_exp.averaging.averager import SLOT
from lawa_exp.axes.feedback.settings import FeedbackSettings
from lawa_exp.seams.callback import Callback

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lawa_exp.seams.callback import Saved

WINDOW = "window."  # before the step of a snapshot, in the names of its saved tensors


class Feedback(Callback):
    """Observes the live weights and writes their average back, from a window of its own: what training went through."""

    def __init__(self, settings: FeedbackSettings, averaged: frozenset[str], optimizer: torch.optim.Optimizer) -> None:
        from lawa_exp.averaging.window import Window

        self.settings, self.averaged, self.optimizer = settings, averaged, optimizer
        self.window = Window()
        self.averager = build_averager(settings.averager, averaged, self.window)

    def begin(self, live: Mapping[str, Tensor]) -> None:
        from lawa_exp.averaging.accumulator import Accumulator

        if self.settings.from_initial:
            assert isinstance(self.averager, Accumulator), "a window takes in no initial weights"
            self.averager.begin(0, live)

    def waits(self, step: int) -> bool:
        return step % self.settings.every == 0

    def after_update(self, step: int, live: Mapping[str, Tensor]) -> None:
        """Observes and, where it is due, changes `live` in place: the optimizer's step has waited for all copies."""
        self.averager.update(step, live)
        if not self.waits(step):
            return
        weights = self.averager.average()
        if weights is None:
            return
        for name in sorted(self.averaged & live.keys()):
            live[name].copy_(weights[name])
        if self.settings.optimizer == "reset":
            self.optimizer.state.clear()

    def state(self) -> Saved:
        tensors, scalars = self.averager.state()
        tensors = dict(tensors)
        for step, snapshot in self.window.snapshots.items():
            tensors |= {f"{WINDOW}{step}{SLOT}{name}": t for name, t in snapshot.tensors.items()}
        return tensors, {"averager": scalars, "window": sorted(self.window.snapshots)}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        from lawa_exp.averaging.window import Snapshot

        own = {name: t for name, t in tensors.items() if not name.startswith(WINDOW)}
        self.averager.load(own, scalars["averager"])
        for step in scalars["window"]:
            prefix = f"{WINDOW}{step}{SLOT}"
            snapshot = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.window.snapshots[step] = Snapshot(step, snapshot)
