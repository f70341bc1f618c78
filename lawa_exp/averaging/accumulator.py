"""The state of an average of all observed weights: a few running tensors for each averaged one, the rest as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lawa_exp.averaging.arithmetic import rounded
from lawa_exp.averaging.averager import SLOT
from lawa_exp.averaging.settings import RunningSettings, observes
from lawa_exp.system.errors import Failed


class Accumulator:
    """An `Averager`; its settings name the slots, each of one running tensor for every averaged one, and fill them."""

    def __init__(
        self, settings: RunningSettings, averaged: frozenset[str], statistics_names: frozenset[str] = frozenset()
    ) -> None:
        self.settings, self.averaged, self.statistics_names = settings, averaged, statistics_names
        self.dtype: torch.dtype = getattr(torch, settings.dtype)  # of the running tensors
        self.count = 0  # observations
        self.step = 0  # of the last one
        self.running: dict[str, dict[str, Tensor]] = {slot: {} for slot in settings.slots}
        self.latest: dict[str, Tensor] = {}
        self.dtypes: dict[str, torch.dtype] = {}  # of the weights

    @torch.no_grad()
    def update(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        if not observes(self.settings, step):
            return
        if self.count == 0:
            self.begin(step, tensors)
            return
        self.dtypes = {n: tensors[n].dtype for n in self.dtypes}  # the model may have been cast
        running = {slot: list(by_name.values()) for slot, by_name in self.running.items()}
        self.settings.accumulate(running, [tensors[n] for n in self.dtypes], step, step - self.step, self.count)
        self._observed(step, tensors)

    @torch.no_grad()
    def begin(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Takes `tensors` as the first observation; those of step 0, too, which `update` never observes."""
        names = self.averaged | self.statistics_names
        self.dtypes = {n: t.dtype for n, t in tensors.items() if n in names}
        self.running = {
            slot: {n: tensors[n].to(self.dtype, copy=True) for n in self.dtypes} for slot in self.settings.slots
        }
        self._observed(step, tensors)

    def _observed(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        self.latest = {n: t.clone() for n, t in tensors.items() if n not in self.averaged}
        self.count, self.step = self.count + 1, step

    @property
    def defined(self) -> bool:
        return self.count > 0

    @torch.no_grad()
    def average(self) -> dict[str, Tensor] | None:
        if not self.defined:
            return None
        latest = {n: t.clone() for n, t in self.latest.items()}
        return {n: self._value(n) for n in self.dtypes if n not in latest} | latest

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        if not self.statistics_names <= self.dtypes.keys():
            raise Failed(
                f"evaluate.bn=average: the saved state of {self.settings.id} has no average of BatchNorm's statistics; "
                "choose recalibrate or latest"
            )
        return {n: self._value(n) for n in sorted(self.statistics_names)}

    def _value(self, name: str) -> Tensor:
        running = {slot: by_name[name] for slot, by_name in self.running.items()}
        return rounded(self.settings.value(running, self.step, self.count), self.dtypes[name])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{slot}{SLOT}{n}": t for slot, by_name in self.running.items() for n, t in by_name.items()}
        dtypes = {n: str(d).removeprefix("torch.") for n, d in self.dtypes.items()}
        latest = {f"{SLOT}{n}": t for n, t in self.latest.items()}
        return tensors | latest, {"count": self.count, "step": self.step, "dtypes": dtypes}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self.count, self.step = scalars["count"], scalars["step"]
        self.dtypes = {n: getattr(torch, d) for n, d in scalars["dtypes"].items()}
        self.running = {slot: {n: tensors[f"{slot}{SLOT}{n}"] for n in self.dtypes} for slot in self.settings.slots}
        self.latest = {n[len(SLOT) :]: t for n, t in tensors.items() if n.startswith(SLOT)}
