"""What data sets and their settings have unless they say otherwise."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from lawa_exp.axes.choice import Choice
from lawa_exp.seams.dataset import Batch, Inputs, Parts
from lawa_exp.seams.samples import Samples

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lawa_exp.seams.task import Task


class BaseSettings(Choice):
    """See `seams.dataset.DatasetSettings`."""

    places: ClassVar[frozenset[str]] = frozenset({"name", "path", "folder", "tokenizer_path"})
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
    in_parts = False
    workers: int | None = None
    _task: Task | None = None

    @property
    @abstractmethod
    def unit(self) -> str: ...

    @property
    def task(self) -> Task:
        return self._task or self.usual_task

    def with_task(self, task: Task) -> Self:
        other = copy.copy(self)
        other._task = task
        return other

    @property
    def usual_task(self) -> Task:
        """That of tokens, or of classes."""
        from lawa_exp.axes.dataset.tasks import Classes, Tokens

        return Tokens(self.unit) if self.classes is None else Classes()

    def with_workers(self, workers: int) -> Self:
        return self

    @abstractmethod
    def train_batch(self, seed: int, samples: Samples) -> Batch: ...

    @abstractmethod
    def eval_batch(self, split: str, indices: np.ndarray) -> Batch: ...

    def train_parts(self, seed: int, samples: Samples) -> Parts:
        return self.train_batch(seed, samples)

    def eval_parts(self, split: str, indices: np.ndarray) -> Parts:
        return self.eval_batch(split, indices)

    def finished(self, inputs: Inputs, targets: Tensor, *more: Tensor) -> tuple[Inputs, Tensor]:
        return inputs, targets
