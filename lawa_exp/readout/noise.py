"""What difference could be chance, as far as a single run can say: not what another seed would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from lawa_exp.results.statistics import Curve, steps_saved, t95
from lawa_exp.seams.task import Task

SETTLED = 0.25  # share of the run after which the live curve's scatter is measured
FEWEST = 4  # residuals that a scatter is measured on


def paired(sums: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
    """Difference in loss between two evaluations of the same batches, and half of its 95% interval.

    sums, baseline: float64 [batches, 2], summed loss and targets. The ratio estimator over batches with Student's t:
    what another draw of as many batches would change, for these very weights. nan where there is one batch only.
    """
    difference, targets = sums[:, 0] - baseline[:, 0], baseline[:, 1]
    mean = difference.sum() / targets.sum()
    batches = len(sums)
    if batches < 2:
        return float(mean), math.nan
    residuals = difference - mean * targets
    error = math.sqrt(batches / (batches - 1) * float(residuals @ residuals)) / targets.sum()
    return float(mean), float(t95(batches - 1) * error)


class Measure(Protocol):
    """What evaluations are compared by, from the sums of their batches, float64 [batches, columns]; lower is better."""

    def value(self, sums: np.ndarray) -> float:
        """Of all batches together."""
        ...

    def difference(self, sums: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
        """Between two evaluations of the same batches, and half of its 95% interval; nan where that is not known."""
        ...

    def tie(self, sums: np.ndarray) -> float:
        """What decides between equal values, lower being better."""
        ...


class Mean:
    """The mean over targets: the first column divided by the second. Ties go by the third, where there is one."""

    def value(self, sums: np.ndarray) -> float:
        return float(sums[:, 0].sum() / sums[:, 1].sum())

    def difference(self, sums: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
        return paired(sums, baseline)

    def tie(self, sums: np.ndarray) -> float:
        return float(sums[:, 2].sum()) if sums.shape[1] > 2 else 0.0


class OfAdded:
    """What a task gives of added sums, such as an area under a curve; its noise is the delete-one jackknife's over
    batches (Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, section 3)."""

    def __init__(self, of_added: Callable[[np.ndarray], float]) -> None:
        """of_added: float64 [columns] -> the value, lower being better."""
        self.of_added = of_added

    def value(self, sums: np.ndarray) -> float:
        return self.of_added(sums.sum(axis=0))

    def difference(self, sums: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
        whole, batches = self.value(sums) - self.value(baseline), len(sums)
        if batches < 2:
            return whole, math.nan
        added, other = sums.sum(axis=0), baseline.sum(axis=0)
        without = [self.of_added(added - a) - self.of_added(other - b) for a, b in zip(sums, baseline, strict=True)]
        error = math.sqrt((batches - 1) * float(np.var(without)))
        return whole, t95(batches - 1) * error

    def tie(self, sums: np.ndarray) -> float:
        return 0.0


MEAN = Mean()


def measure_of(task: Task, name: str) -> tuple[Measure, Callable[[np.ndarray], np.ndarray]]:
    """What compares evaluations by a metric of the task, and what makes the sums of batches into those it takes."""
    metric = task.metrics[name]
    if metric.column is None:
        return OfAdded(lambda added: metric.as_loss(task.fields(added)[name])), lambda sums: sums
    if not metric.higher_is_better:
        return MEAN, lambda sums: sums[:, [metric.column, 1]]
    losses = task.metrics["loss"].column  # decide between equal shares
    tie = [] if losses is None else [losses]
    return MEAN, lambda sums: np.column_stack([sums[:, 1] - sums[:, metric.column], sums[:, 1], sums[:, tie]])


def scatter(points: Curve) -> float:
    """Standard deviation of a curve's evaluations around its local trend; nan where they are too few.

    From how far each is from the line between its neighbours, after the first quarter of the run; a bend of the curve
    counts as scatter, and what neighbours share does not.
    """
    later = [(s, v) for s, v in points if s >= SETTLED * points[-1][0]]
    squares = []
    for (s0, v0), (s1, v1), (s2, v2) in zip(later, later[1:], later[2:], strict=False):
        share = (s1 - s0) / (s2 - s0)
        residual = v1 - (1 - share) * v0 - share * v2
        squares.append(residual**2 / (1 + (1 - share) ** 2 + share**2))
    return math.sqrt(sum(squares) / len(squares)) if len(squares) >= FEWEST else math.nan


def together(*halves: float) -> float:
    """Half of the interval from independent sources; those that are nan are not known and left out (nan: none is)."""
    finite = [h for h in halves if not math.isnan(h)]
    return math.hypot(*finite) if finite else math.nan


def saved_between(
    live: Curve, step: int, value: float, half: float
) -> tuple[tuple[float, bool], tuple[float, bool]] | None:
    """The steps saved if the loss were higher, and if it were lower, by `half`; None where it is nan."""
    if math.isnan(half):
        return None
    return steps_saved(live, step, value + half), steps_saved(live, step, value - half)


def halfway(steps: Sequence[int], last: int) -> int:
    """The first of `steps` from the middle of the run on: there the live weights have as much left to catch up."""
    return next((s for s in steps if 2 * s >= last), steps[-1])
