"""A saved trajectory, walked once: the averagers that a training attaches, fed with its snapshots in order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lawa_exp.averaging import Averager, AveragerSettings, build_averager, observed_steps, row_fields
from lawa_exp.averaging.needs import missing_steps
from lawa_exp.averaging.window import Snapshot, Window
from lawa_exp.evaluation.batchnorm import policy_field, with_statistics
from lawa_exp.storage.commit import verify
from lawa_exp.storage.safetensors import map_stored
from lawa_exp.system import signals
from lawa_exp.system.errors import Failed


def read_snapshot(folder: Path) -> dict[str, Tensor]:
    """The tensors of a committed snapshot, mapped; `Damaged` names a file that is not what was written."""
    verify(folder)
    return map_stored(folder)


@dataclass(frozen=True)
class Snapshots:
    """A saved trajectory: where the weights of each step are, ascending, and what reads them (onto the CPU)."""

    paths: dict[int, Path]
    read: Callable[[Path], dict[str, Tensor]]


class Average(Protocol):
    """What a read-out evaluates."""

    id: str
    fields: Mapping[str, object]  # how a row names it

    def key(self, step: int) -> Hashable | None:
        """None: there is no such average after `step`. Weights of equal keys are the same bytes."""
        ...

    def weights(self, step: int) -> dict[str, Tensor]:
        """The average after `step`; called in step order."""
        ...


def exactly(step: int) -> Hashable:
    """The key of the snapshot of `step` itself."""
    return (step,), (1.0,)


class Replayed:
    """An averager that is fed with snapshots."""

    def __init__(self, averager: Averager, saved: Collection[int], bn: str | None = None) -> None:
        self.averager, self.saved, self.bn = averager, saved, bn
        self.id = averager.settings.id
        self.fields: Mapping[str, object] = {**row_fields(averager.settings), **policy_field(bn)}

    def key(self, step: int) -> Hashable | None:
        settings = self.averager.settings
        needed = settings.needed(step)
        if len(needed) < settings.observations or missing_steps(settings, self.saved, step):
            return None
        if settings.windowed:
            return tuple(needed), tuple(settings.coefficients(needed))
        return self.id, needed[-1]

    def weights(self, step: int) -> dict[str, Tensor]:
        weights = self.averager.average()
        assert weights is not None, self.id
        return with_statistics(self.averager, weights, self.bn)


class Replay:
    """Averagers over one pass of the snapshots: each is read once, and one window holds those of all."""

    def __init__(
        self,
        settings: Sequence[AveragerSettings],
        averaged: frozenset[str],
        snapshots: Snapshots,
        device: torch.device,
        live: Iterable[int] = (),
        statistics: frozenset[str] = frozenset(),
        bn: str | None = None,
    ) -> None:
        """live: steps after which the snapshot itself is read, too. statistics: names of BatchNorm's.

        bn: with which of them all weights are evaluated, as `batchnorm.policy` gives it.
        """
        self.snapshots, self.device, self.bn = snapshots, device, bn
        self.averaged, self.statistics = averaged, statistics
        self.window = Window()
        averagers = [build_averager(s, averaged, self.window, statistics) for s in settings]
        self.averages = [Replayed(a, snapshots.paths, bn) for a in averagers]
        last = max(snapshots.paths, default=0)
        wanted = {t for s in settings for t in observed_steps(s, last)} | set(live)
        self.wanted = sorted(wanted & snapshots.paths.keys())
        self.next = 0
        self.done = 0  # up to this step averagers that keep a state have taken in everything

    def advance(self, step: int) -> None:
        """Feeds every snapshot up to `step`."""
        while self.next < len(self.wanted) and self.wanted[self.next] <= step:
            t = self.wanted[self.next]
            stop_if_requested(t)
            tensors = self.snapshots.read(self.snapshots.paths[t])
            self.window.hold(Snapshot(t, tensors))  # in its file's mapped pages: a wide window fills no memory
            tensors = {n: tensor.to(self.device) for n, tensor in tensors.items()}
            for average in self.averages:
                if t > self.done or average.averager.settings.windowed:
                    average.averager.update(t, tensors)
            self.next += 1

    def go_on(self, done: int, later: Iterable[int]) -> None:
        """Goes on behind step `done`, of averagers in that state: before it only what windows need `later` is read."""
        windows = [a.averager.settings for a in self.averages if a.averager.settings.windowed]
        needed = {t for step in later for settings in windows for t in settings.needed(step)}
        self.wanted = [t for t in self.wanted if t > done or t in needed]
        self.done = done

    def live(self, step: int) -> dict[str, Tensor] | None:
        """The snapshot of `step`, to which it has advanced; None where there is none."""
        snapshot = self.window.snapshots.get(step)
        return snapshot.tensors if snapshot else None

    def another(self, settings: Sequence[AveragerSettings], live: Iterable[int]) -> Replay:
        """A pass of its own over the same snapshots."""
        return Replay(settings, self.averaged, self.snapshots, self.device, live, self.statistics, self.bn)


class Stopped(Failed):
    """The process got a signal to stop."""


def stop_if_requested(step: int) -> None:
    if signals.stop_requested():
        raise Stopped(f"stopped at step {step:,}: nothing was written; the same command begins anew")
