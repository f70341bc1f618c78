"""The averagers of all observed weights: a few running tensors for each averaged one, the rest as it was last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lawa_exp.averaging.arithmetic import rounded
from lawa_exp.averaging.settings import observed_steps, observes
from lawa_exp.averaging.window import Window
from lawa_exp.config.rules import LARGEST
from lawa_exp.system.errors import Failed

SLOT = "|"  # between a slot and a tensor's name, in a saved state


class Accumulator:
    """Subclasses name their `slots` (one running tensor of `dtype` in each for every averaged one) and fill them."""

    dtype: ClassVar[torch.dtype] = torch.float32
    slots: ClassVar[tuple[str, ...]] = ("mean",)

    def __init__(
        self, settings: Any, averaged: frozenset[str], window: Window, statistics: frozenset[str] = frozenset()
    ) -> None:
        self.settings, self.averaged, self.beside = settings, averaged, statistics
        self.count = 0  # observations
        self.step = 0  # of the last one
        self.running: dict[str, dict[str, Tensor]] = {slot: {} for slot in self.slots}
        self.latest: dict[str, Tensor] = {}
        self.dtypes: dict[str, torch.dtype] = {}

    def accumulate(self, step: int, theta: list[Tensor]) -> None:
        """Takes the weights observed after `step` into the slots (same order), in place; `count` were before."""
        raise NotImplementedError

    def value(self, name: str) -> Tensor:
        """The average of one tensor, in `dtype`."""
        return self.running["mean"][name]

    @torch.no_grad()
    def update(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        if not observes(self.settings, step):
            return
        if self.count == 0:
            self.begin(step, tensors)
            return
        self.dtypes = {n: tensors[n].dtype for n in self.dtypes}  # the model may have been cast
        self.accumulate(step, [tensors[n] for n in self.dtypes])
        self._observed(step, tensors)

    @torch.no_grad()
    def begin(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """The first observation."""
        self.dtypes = {n: t.dtype for n, t in tensors.items() if n in self.averaged | self.beside}
        self.running = {s: {n: tensors[n].to(self.dtype, copy=True) for n in self.dtypes} for s in self.slots}
        self._observed(step, tensors)

    def _observed(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        self.latest = {n: t.clone() for n, t in tensors.items() if n not in self.averaged}
        self.count, self.step = self.count + 1, step

    @property
    def defined(self) -> bool:
        return self.count > 0

    @torch.no_grad()
    def average(self) -> dict[str, Tensor] | None:
        """New tensors in the weights' own dtype, or None before the first observation."""
        if not self.defined:
            return None
        latest = {n: t.clone() for n, t in self.latest.items()}
        return {n: rounded(self.value(n), d) for n, d in self.dtypes.items() if n not in latest} | latest

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """BatchNorm's statistics, averaged as the weights are; `average` has the latest. Once it is defined."""
        if not self.beside <= self.dtypes.keys():
            raise Failed(
                f"evaluate.bn=average: the saved state of {self.settings.id} has no average of BatchNorm's statistics; "
                "choose recalibrate or latest"
            )
        return {n: rounded(self.value(n), self.dtypes[n]) for n in sorted(self.beside)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{slot}{SLOT}{n}": t for slot, held in self.running.items() for n, t in held.items()}
        dtypes = {n: str(d).removeprefix("torch.") for n, d in self.dtypes.items()}
        latest = {f"{SLOT}{n}": t for n, t in self.latest.items()}
        return tensors | latest, {"count": self.count, "step": self.step, "dtypes": dtypes}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        if "step" not in scalars:  # saved before there were slots
            scalars = {**scalars, "step": observed_steps(self.settings, LARGEST)[scalars["count"] - 1]}
            tensors = {(f"mean{SLOT}" if n in scalars["dtypes"] else SLOT) + n: t for n, t in tensors.items()}
        self.count, self.step = scalars["count"], scalars["step"]
        self.dtypes = {n: getattr(torch, d) for n, d in scalars["dtypes"].items()}
        self.running = {slot: {n: tensors[f"{slot}{SLOT}{n}"] for n in self.dtypes} for slot in self.slots}
        self.latest = {n[len(SLOT) :]: t for n, t in tensors.items() if n.startswith(SLOT)}

    def _slot(self, slot: str) -> list[Tensor]:
        return list(self.running[slot].values())


class ExponentialAverage(Accumulator):
    """ema and power_ema: e <- e + (1 - d) * (theta - e), in float32, with d = settings.old_weight(...)."""

    def accumulate(self, step: int, theta: list[Tensor]) -> None:
        old = self.settings.old_weight(step, step - self.step, self.count)
        torch._foreach_lerp_(self._slot("mean"), [t.float() for t in theta], 1 - old)


class RunningMean(Accumulator):
    """swa: a float64 sum in step order, divided once when asked."""

    dtype = torch.float64

    def accumulate(self, step: int, theta: list[Tensor]) -> None:
        torch._foreach_add_(self._slot("mean"), theta)

    def value(self, name: str) -> Tensor:
        return self.running["mean"][name] / self.count


class BiasCorrected(ExponentialAverage):
    """bema: the EMA, and how far the weights have come from where it started."""

    slots = ("mean", "first", "last")

    def accumulate(self, step: int, theta: list[Tensor]) -> None:
        super().accumulate(step, theta)
        torch._foreach_copy_(self._slot("last"), theta)

    def value(self, name: str) -> Tensor:
        running = self.running
        moved = running["last"][name] - running["first"][name]
        return torch.add(running["mean"][name], moved, alpha=self.settings.bias_weight(self.step))
