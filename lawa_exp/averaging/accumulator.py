"""What EMA and SWA share: one running value for each averaged tensor, the rest as it was last observed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lawa_exp.averaging import observes
from lawa_exp.averaging.window import Window


class Accumulator:
    """Subclasses give `dtype` (of the running value), `accumulate(theta)` and `value(running)`."""

    dtype: torch.dtype

    def __init__(self, settings: Any, averaged: frozenset[str], window: Window) -> None:
        self.settings, self.averaged = settings, averaged
        self.count = 0  # observations
        self.running: dict[str, Tensor] = {}
        self.latest: dict[str, Tensor] = {}
        self.dtypes: dict[str, torch.dtype] = {}

    def accumulate(self, theta: list[Tensor]) -> None:
        """Takes the next observed weights into `running` (same order), in place."""
        raise NotImplementedError

    def value(self, running: Tensor) -> Tensor:
        """The average of one tensor from its running value."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        if not observes(self.settings, step):
            return
        if self.count == 0:
            self.dtypes = {n: t.dtype for n, t in tensors.items() if n in self.averaged}
            self.running = {n: tensors[n].to(self.dtype, copy=True) for n in self.dtypes}
        else:
            self.accumulate([tensors[n] for n in self.running])
        self.latest = {n: t.clone() for n, t in tensors.items() if n not in self.averaged}
        self.count += 1

    @torch.no_grad()
    def average(self) -> dict[str, Tensor] | None:
        """New tensors in the weights' own dtype, or None before the first observation."""
        if self.count == 0:
            return None
        averaged = {n: self.value(r).to(self.dtypes[n], copy=True) for n, r in self.running.items()}
        return averaged | {n: t.clone() for n, t in self.latest.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        dtypes = {n: str(d).removeprefix("torch.") for n, d in self.dtypes.items()}
        return self.running | self.latest, {"count": self.count, "dtypes": dtypes}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self.count = scalars["count"]
        self.dtypes = {n: getattr(torch, d) for n, d in scalars["dtypes"].items()}
        self.running = {n: tensors[n] for n in self.dtypes}
        self.latest = {n: t for n, t in tensors.items() if n not in self.dtypes}
