"""Batches of noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lawa_exp.axes.batch.batches import Batches
from lawa_exp.axes.fault.fault import Fault
from lawa_exp.config.rules import setting, steps
from lawa_exp.seams.dataset import Batch, Dataset, Parts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BadBatches(Fault):
    """Training batches of noise (`noise_batch` of the data set): of tokens and targets uniform over the vocabulary, of
    pixels uniform over their range with classes at random. The samples that they displace count as seen."""

    at: int = setting(steps())
    length: int = setting(steps(1))

    @property
    def described(self) -> str:
        return "batches of noise"

    def drawn(self, data: Dataset, batches: Batches) -> Dataset:
        return Noisy(data, batches.samples(self.at), batches.samples(self.at + self.length))


class Noisy:
    """`data`, but with training batches of noise from sample number `first` up to `end`. No batch is half of each.

    It inherits nothing: a member of `Dataset` that it lacks is a type error, and none is lost to a default.
    """

    def __init__(self, data: Dataset, first: int, end: int) -> None:
        self.data, self.first, self.end = data, first, end
        self.sizes, self.tokens_per_sample = data.sizes, data.tokens_per_sample
        self.sample, self.unit = data.sample, data.unit
        self.note, self.fingerprint, self.sampled = data.note, data.fingerprint, data.sampled
        self.vocab_size, self.classes = data.vocab_size, data.classes
        self.channels, self.image_size = data.channels, data.image_size
        self.in_bits, self.in_parts, self.workers = data.in_bits, data.in_parts, data.workers

    def with_workers(self, workers: int) -> Noisy:
        return Noisy(self.data.with_workers(workers), self.first, self.end)

    def train_batch(self, seed: int, first: int, count: int) -> Batch:
        return (self.data.noise_batch if self._struck(first) else self.data.train_batch)(seed, first, count)

    def noise_batch(self, seed: int, first: int, count: int) -> Batch:
        return self.data.noise_batch(seed, first, count)

    def train_targets(self, seed: int, first: int, count: int) -> int:
        return self.data.train_targets(seed, first, count)

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        return self.data.eval_batch(split, indices)

    def train_parts(self, seed: int, first: int, count: int) -> Parts:
        """Of noise: a number where the data's parts have inputs, and the whole batch, which needs no finishing."""
        if self._struck(first):
            return (np.zeros(()), *self.data.noise_batch(seed, first, count))
        return self.data.train_parts(seed, first, count)

    def eval_parts(self, split: str, indices: np.ndarray) -> Parts:
        return self.data.eval_parts(split, indices)

    def finished(self, inputs: Tensor, targets: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.ndim == 0:  # the number before noise
            return targets, more[0]
        return self.data.finished(inputs, targets, *more)

    def _struck(self, first: int) -> bool:
        return self.first <= first < self.end
