"""Averages after one step, each a weighted mean of snapshots, many of them in one pass over these."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lawa_exp.averaging import AveragerSettings, observed_steps, row_fields
from lawa_exp.averaging.arithmetic import NARROW, rounded
from lawa_exp.evaluation.batchnorm import policy_field
from lawa_exp.evaluation.replay import Snapshots, stop_if_requested

CHUNK, PART = 1 << 14, 1 << 20  # elements of a tensor that are averaged at once, and by one thread
SHARE = 3  # of the memory that is free, at most a part in so many is for averages


class Mixtures:
    """The averages with these settings after `step`, as files of snapshots are averaged: float64, rounded once.

    They are made in their order, as many at once as fit into the memory, and forgotten when the next ones are.
    Statistics of BatchNorm and integers are those of the latest snapshot that an average takes in.
    """

    def __init__(
        self,
        settings: Sequence[AveragerSettings],
        step: int,
        snapshots: Snapshots,
        averaged: frozenset[str],
        bn: str | None = None,
        most: int | None = None,
    ) -> None:
        """most: averages that are in memory at once; None: what fits."""
        self.step, self.snapshots, self.averaged = step, snapshots, averaged
        self.opened: dict[int, dict[str, Tensor]] = {}
        self.coefficients: list[dict[int, float]] = []
        for each in settings:
            steps = observed_steps(each, step)
            weights = each.coefficients(steps)
            total = math.fsum(weights)
            taken = zip(list(steps)[-len(weights) :], weights, strict=True)
            self.coefficients.append({s: w / total for s, w in taken})
        self.averages = [Mixture(self, i, each, bn) for i, each in enumerate(settings)]
        self.most = most
        self.first = 0  # of those in memory
        self.made: list[dict[str, Tensor]] = []

    def weights(self, number: int) -> dict[str, Tensor]:
        """Of the average `number`."""
        if not self.first <= number < self.first + len(self.made):
            self.made = []  # before others take its place
            self.first, self.made = number, self._make(number)
        return self.made[number - self.first]

    def _read(self, step: int) -> dict[str, Tensor]:
        """Mapped, and mapped once."""
        if step not in self.opened:
            stop_if_requested(step)
            self.opened[step] = self.snapshots.read(self.snapshots.paths[step])
        return self.opened[step]

    @torch.no_grad()
    def _make(self, first: int) -> list[dict[str, Tensor]]:
        latest = self._read(max(self.coefficients[first]))
        size = sum(t.numel() * t.element_size() for t in latest.values())
        group = self.coefficients[first : first + (self.most or max(1, free_memory() // SHARE // max(1, size)))]
        steps = sorted({s for each in group for s in each})
        sources = [self._read(s) for s in steps]
        weights = torch.tensor([[each.get(s, 0.0) for s in steps] for each in group], dtype=torch.float64)
        made: list[dict[str, Tensor]] = [
            {
                n: torch.empty(t.shape, dtype=t.dtype) if n in self.averaged else self._read(max(each))[n].clone()
                for n, t in latest.items()
            }
            for each in group
        ]
        with one_thread_each() as threads:
            for name in self.averaged & latest.keys():
                flat = [source[name].reshape(-1) for source in sources]
                mix(flat, weights, [average[name].view(-1) for average in made], threads)
        return made


class Mixture:
    """One of them; see `replay.Average`."""

    def __init__(self, all_of_them: Mixtures, number: int, settings: AveragerSettings, bn: str | None) -> None:
        self.mixtures, self.number, self.settings = all_of_them, number, settings
        self.id = settings.id
        self.fields: Mapping[str, object] = {**row_fields(settings), **policy_field(bn)}

    def key(self, step: int) -> Hashable | None:
        """Equal of averages of the same snapshots with the same weights."""
        own = self.mixtures.coefficients[self.number]
        return (tuple(own), tuple(own.values())) if step == self.mixtures.step else None

    def weights(self, step: int) -> dict[str, Tensor]:
        return self.mixtures.weights(self.number)


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, each of which computes alone: short operations do not wait for each other."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, "averaging") as threads:
            yield threads
    finally:
        torch.set_num_threads(count)


def mix(sources: Sequence[Tensor], weights: Tensor, outputs: Sequence[Tensor], threads: ThreadPoolExecutor) -> None:
    """weights, float64 [averages, sources] @ sources into the outputs, all one-dimensional."""
    size = len(sources[0])

    @torch.no_grad()
    def part(first: int) -> None:
        buffer = torch.empty(len(sources), min(CHUNK, size - first), dtype=torch.float64)
        for begin in range(first, min(first + PART, size), CHUNK):
            count = min(CHUNK, size - begin)
            rows = buffer[:, :count]
            for row, source in zip(rows, sources, strict=True):
                row.copy_(source[begin : begin + count])
            sums = weights @ rows
            if not bool(sums.sum().isfinite()):  # 0 * inf: a snapshot that an average does not take in is none of its
                sums = torch.stack([_without_zeros(rows, own) for own in weights])
            for output, values in zip(outputs, sums, strict=True):
                narrow = output.dtype in NARROW
                output[begin : begin + count] = rounded(values, output.dtype) if narrow else values

    for done in [threads.submit(part, first) for first in range(0, size, PART)]:
        done.result()


def _without_zeros(rows: Tensor, weights: Tensor) -> Tensor:
    taken = weights != 0
    return weights[taken] @ rows[taken]


def free_memory() -> int:
    """Bytes that are free, or can be; where the system does not say, 4 GiB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 4 << 30
