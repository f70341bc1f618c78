"""Batches of noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lawa_exp.axes.batch.batches import Batches
from lawa_exp.axes.fault.fault import Fault
from lawa_exp.config.rules import setting, steps


@dataclass(frozen=True)
class BadBatches(Fault):
    """Training batches of noise (`noise_batch` of the data set): of tokens and targets uniform over the vocabulary, of
    pixels uniform over their range with classes at random. The samples that they displace count as seen."""

    at: int = setting(steps())
    length: int = setting(steps(1))
    described = "batches of noise"

    def drawn(self, data: Any, batches: Batches) -> Any:
        return Noisy(data, batches.samples(self.at), batches.samples(self.at + self.length))


@dataclass(frozen=True)
class Noisy:
    """`data`, but with training batches of noise from sample number `first` up to `end`. No batch is half of each."""

    data: Any
    first: int
    end: int

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "data"), name)  # which a copy in the making does not have yet

    def train_batch(self, seed: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        return (self.data.noise_batch if self._struck(first) else self.data.train_batch)(seed, first, count)

    @property
    def train_parts(self) -> Callable[..., tuple[np.ndarray, ...]]:
        """Of data that are finished on the device; noise is a whole batch behind a number, where an image would be."""
        read = self.data.train_parts

        def parts(seed: int, first: int, count: int) -> tuple[np.ndarray, ...]:
            noise = self._struck(first)
            return (np.zeros(()), *self.data.noise_batch(seed, first, count)) if noise else read(seed, first, count)

        return parts

    @property
    def finished(self) -> Callable[..., tuple[Any, ...]]:
        finish = self.data.finished
        return lambda first, *others: finish(first, *others) if first.ndim else others

    def _struck(self, first: int) -> bool:
        return self.first <= first < self.end
