"""What data sets and their settings have unless they say otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from lawa_exp.seams.dataset import Batch, Parts

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class BaseSettings:
    """See `seams.dataset.DatasetSettings`."""

    inputs: ClassVar[str]
    path: str | None = None
    tokenizer: str | None = None
    tokenizer_path: str | None = None
    image_size: int | None = None


class BaseDataset(ABC):
    """See `seams.dataset.Dataset`: tokens or images in memory, whose parts are the batch itself."""

    vocab_size: int | None = None
    classes: int | None = None
    channels: int | None = None
    image_size: int | None = None
    sampled: Sequence[str] = ()
    in_bits = False
    in_parts = False
    workers: int | None = None

    def with_workers(self, workers: int) -> Self:
        return self

    @abstractmethod
    def train_batch(self, seed: int, first: int, count: int) -> Batch: ...

    @abstractmethod
    def eval_batch(self, split: str, indices: np.ndarray) -> Batch: ...

    def train_parts(self, seed: int, first: int, count: int) -> Parts:
        return self.train_batch(seed, first, count)

    def eval_parts(self, split: str, indices: np.ndarray) -> Parts:
        return self.eval_batch(split, indices)

    def finished(self, inputs: Tensor, targets: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, targets
