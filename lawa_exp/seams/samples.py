"""Which samples an update takes, and how its passes share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Samples:
    """Samples of training, in their order in the batch.

    numbers: int64 [n], over all epochs: the random choices of each (its mask, its crop) follow from its number.
    indices: int64 [n], places in the training split. noise: the data set's `noise_batch` stands for them.
    """

    numbers: np.ndarray
    indices: np.ndarray
    noise: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    def cut(self, first: int, count: int) -> Samples:
        """`count` of them from place `first` on."""
        return Samples(self.numbers[first : first + count], self.indices[first : first + count], self.noise)


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of this rank.

    first: the place in the step's batch of its first sample. phase: of an objective that cuts the batch into phases,
    the piece that this pass is of. batch: samples of the whole batch, over all ranks; targets: of it that count for the
    task; counts: the denominator of each term of the loss that is no mean over samples. last: whether it is this rank's
    last pass in this step.
    """

    step: int
    first: int
    phase: int
    samples: Samples
    batch: int
    targets: int
    counts: Mapping[str, int]
    last: bool


def check_samples(samples: object, size: int) -> None:
    """UserError where a sampler gave something else, or places that the training split, of `size`, does not have."""
    if not isinstance(samples, Samples):
        raise UserError(f"sampling: it gave a {type(samples).__name__}; expected lawa_exp.seams.samples.Samples")
    if any(part.dtype.kind not in "iu" or part.ndim != 1 for part in (samples.numbers, samples.indices)):
        raise UserError("sampling: the numbers and indices of samples are one-dimensional arrays of integers")
    if len(samples) and not 0 <= samples.indices.min() <= samples.indices.max() < size:
        first, last = samples.indices.min(), samples.indices.max()
        raise UserError(f"sampling: indices from {first} to {last}; expected 0 to {size - 1}")
