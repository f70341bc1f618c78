"""What difference could be chance, as far as a single run can say: not what another seed would give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lawa_exp.results.statistics import Curve, steps_saved, t95

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
