"""What an evaluation reports, and what counts as a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

IGNORE = -100  # a target that does not count


SHARE = "of 1"  # the unit of a share: differences are told in points, hundredths of it


@dataclass(frozen=True)
class Metric:
    """What every reader of rows must know of a number in them. unit: as it is printed; digits: behind the point.

    tolerance: a difference so small counts as none where an average is chosen; another seed changes far more.
    column: of a mean over the targets that count, the place in `Task.sums` of what is divided by their number; None:
    `Task.fields` alone gives it.
    """

    unit: str
    higher_is_better: bool = False
    digits: int = 4
    tolerance: float = 0.001
    column: int | None = None

    @property
    def is_share(self) -> bool:
        return self.unit == SHARE

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"

    def as_loss(self, value: float) -> float:
        """The value turned, where need be, so that lower is better: of a share what is missing to 1."""
        return value if not self.higher_is_better else 1 - value if self.is_share else -value


class Task(Protocol):
    """Of a data set, unless the objective brings another. The sums of batches and ranks are added up in float64: the
    result is the same on any number of ranks. What is no mean over samples is had from sums that suffice for it, an
    area under a curve from a histogram of scores."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Of `fields`, by name and in their order: `loss` first, by which weights are compared, lower being better.

        Names are those of variables, and of no other field of a row (`storage.metrics.check_metrics`).
        """
        ...

    @property
    def decides(self) -> str:
        """The metric by which `suggest` chooses an average."""
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
        """The metrics, of added sums, float64 [columns]; nan where it is not defined."""
        ...
