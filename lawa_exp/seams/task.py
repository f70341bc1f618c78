"""What an evaluation reports, and what counts as a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

IGNORE = -100  # a target that does not count


@dataclass(frozen=True)
class Metric:
    """What every reader of rows must know of a number in them. unit: as it is printed; digits: behind the point."""

    unit: str
    higher_is_better: bool = False
    digits: int = 4


class Task(Protocol):
    """Of a data set, unless the objective brings another. The sums of batches and ranks are added up in float64: the
    result is the same on any number of ranks. What is no mean over samples is had from sums that suffice for it, an
    area under a curve from a histogram of scores."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Of `fields`, by name: `loss` first, by which weights are compared, lower being better."""
        ...

    @property
    def columns(self) -> int:
        """How many numbers `sums` gives."""
        ...

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """A scalar with its graph: summed over the targets that count."""
        ...

    def sums(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Float64 [columns] of one batch: the summed loss, the number of targets that count, and others."""
        ...

    def fields(self, sums: np.ndarray) -> dict[str, float]:
        """The metrics, of added sums, float64 [columns]."""
        ...
