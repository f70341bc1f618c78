"""Snapshots in memory: taken once for a step, shared by every averager and file that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Snapshot:
    """An exact copy of the live weights and buffers after a step."""

    step: int
    tensors: dict[str, Tensor]


def copy_of(step: int, tensors: Mapping[str, Tensor]) -> Snapshot:
    return Snapshot(step, {name: t.detach().clone() for name, t in tensors.items()})


class Window:
    """The run's snapshots. Readers say which steps they still need; the others are dropped."""

    def __init__(self) -> None:
        self.snapshots: dict[int, Snapshot] = {}
        self._needs: list[Callable[[int], Sequence[int]]] = []

    def add_reader(self, needs: Callable[[int], Sequence[int]]) -> None:
        """needs: step -> the steps whose snapshots must be held after it, oldest first."""
        self._needs.append(needs)

    def take(self, step: int, tensors: Mapping[str, Tensor]) -> Snapshot:
        """The snapshot of `step`, copied now unless it was taken before; what nobody needs any more is dropped.

        Later snapshots stay: a reader that is rebuilt takes earlier steps than another already holds.
        """
        if step not in self.snapshots:
            self.snapshots[step] = copy_of(step, tensors)
            kept = {s for needs in self._needs for s in needs(step)} | {step}
            self.snapshots = {s: snapshot for s, snapshot in self.snapshots.items() if s in kept or s > step}
        return self.snapshots[step]


@torch.no_grad()
def mean(snapshots: list[dict[str, Tensor]], averaged: frozenset[str]) -> dict[str, Tensor]:
    """Plain mean: a float64 sum in the order given, divided once, in the weights' own dtype; the rest from the last."""
    result = {}
    for name, last in snapshots[-1].items():
        if name not in averaged:
            result[name] = last.clone()
            continue
        total = snapshots[0][name].double()
        total = total.clone() if total is snapshots[0][name] else total
        for tensors in snapshots[1:]:
            total += tensors[name]
        result[name] = (total / len(snapshots)).to(last.dtype)
    return result
