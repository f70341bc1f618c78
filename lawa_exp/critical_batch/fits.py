"""Steps and samples that reach a loss at several batch sizes: the trade-off between them, and what follows from it.

At one loss, batch size B takes S steps and E = B S samples with (S / S_min - 1) (E / E_min - 1) = 1, and the critical
batch size is B_crit = E_min / S_min: there both are twice their minimum (McCandlish et al. 2018, section 2.3). The same
relation is S = S_min + E_min / B = S_min (1 + B_crit / B), which is linear in the two unknowns. With a power law for
B_crit(L) it gives the loss curve of any other batch size (Kaplan et al. 2020, section 5.1; Su et al. 2024, who have a
power law for S_min(L) too, where we take the measured one).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lawa_exp.results.statistics import Curve, steps_saved

GRID = 100  # loss levels on which a curve is predicted

Points = Sequence[tuple[float, float]]  # (step, loss), by step; not every step is whole


@dataclass(frozen=True)
class Fit:
    """One loss level. steps: S by batch size; s_min in steps, e_min in samples, neither below 0."""

    loss: float
    steps: Mapping[int, float]
    s_min: float
    e_min: float

    @property
    def critical(self) -> float | None:
        """B_crit in samples; None where the batch sizes show only one side of it (one of the minima is 0)."""
        return self.e_min / self.s_min if self.s_min > 0 and self.e_min > 0 else None

    @property
    def error(self) -> float:
        """The largest relative deviation of a fitted S from the measured one."""
        return max(abs(self.at(size) / steps - 1) for size, steps in self.steps.items())

    def at(self, size: float) -> float:
        """Steps to this loss at a batch size."""
        return self.s_min + self.e_min / size


def fit(loss: float, steps: Mapping[int, float]) -> Fit:
    """Least squares of the relative deviations, (S_min + E_min / B) / S - 1, over two batch sizes or more."""
    pairs = [(1 / s, 1 / (size * s)) for size, s in steps.items()]
    xx, xy, yy = (sum(p[i] * p[j] for p in pairs) for i, j in ((0, 0), (0, 1), (1, 1)))
    x, y = (sum(p[i] for p in pairs) for i in (0, 1))
    determinant = xx * yy - xy * xy
    s_min, e_min = (x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant
    if s_min <= 0:
        s_min, e_min = 0.0, y / yy
    elif e_min <= 0:
        s_min, e_min = x / xx, 0.0
    return Fit(loss, steps, s_min, e_min)


@dataclass(frozen=True)
class Law:
    """B_crit(L) = at_one / L^exponent, in samples: B* and 1 / alpha_B of Kaplan et al. 2020 (section 5.1)."""

    at_one: float
    exponent: float

    def at(self, loss: float) -> float:
        return float(self.at_one / loss**self.exponent)


def power_law(fits: Iterable[Fit]) -> Law | None:
    """Least squares in the logarithms, over the levels that have a critical batch size; None for fewer than two."""
    points = [(math.log(f.loss), math.log(f.critical)) for f in fits if f.critical is not None]
    if len(points) < 2:
        return None
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    return Law(math.exp(intercept), -slope)


def smoothed(curve: Curve, evaluations: int) -> list[tuple[int, float]]:
    """Each value the mean of `evaluations` (odd) around it; of as many as there are on either side at the ends."""
    values = [v for _, v in curve]
    reach = [min(i, len(curve) - 1 - i, evaluations // 2) for i in range(len(curve))]
    return [
        (s, statistics.fmean(values[i - r : i + r + 1])) for i, (r, (s, _)) in enumerate(zip(reach, curve, strict=True))
    ]


def steps_to(curve: Curve, loss: float) -> float | None:
    """The first step at which the curve (linear between evaluations) is at `loss`; None: it never is, or always."""
    if curve[0][1] < loss:
        return None
    steps, reached = steps_saved(curve, 0, loss)
    return steps if reached else None


def loss_at(curve: Points, step: float) -> float | None:
    """The curve's value after `step`, linear between its points; None outside of them."""
    for (s0, v0), (s1, v1) in itertools.pairwise(curve):
        if s0 <= step <= s1 and s0 < s1:
            return v0 + (v1 - v0) * (step - s0) / (s1 - s0)
    return None


def evenly(high: float, low: float, count: int) -> list[float]:
    """`count` levels down to `low`, `high` itself left out."""
    return [high - (high - low) * (i + 1) / count for i in range(count)]


def common_range(curves: Iterable[Curve]) -> tuple[float, float]:
    """(high, low): from the lowest first value to the highest minimum; every curve passes what is between."""
    found = list(curves)
    return min(c[0][1] for c in found), max(min(v for _, v in c) for c in found)


def fits_at(levels: Iterable[float], curves: Mapping[int, Curve]) -> list[Fit]:
    """A fit for each level that every curve passes. curves: by batch size."""
    found = []
    for loss in levels:
        steps = {size: s for size, curve in curves.items() if (s := steps_to(curve, loss)) is not None}
        if len(steps) == len(curves):
            found.append(fit(loss, steps))
    return found


def predicted(size: int, curves: Mapping[int, Curve]) -> list[tuple[float, float]]:
    """(step, loss) of batch size `size` from the curves of others: S = S_min(L) (1 + B_crit(L) / B).

    B_crit is the power law fitted where all of them go; S_min(L) is the geometric mean of what those that get to L say,
    so the curve goes as far as any of them, beyond the fits by way of the law. Empty where there is no power law.
    """
    law = power_law(fits_at(evenly(*common_range(curves.values()), GRID), curves))
    if law is None:
        return []
    high, low = common_range(curves.values())[0], min(v for c in curves.values() for _, v in c)
    found = []
    for loss in evenly(high, low, GRID):
        steps = {b: s for b, c in curves.items() if (s := steps_to(c, loss)) is not None}
        s_min = statistics.geometric_mean(s / (1 + law.at(loss) / b) for b, s in steps.items())
        found.append((s_min * (1 + law.at(loss) / size), loss))
    return sorted(found)


def relative_errors(prediction: Points, measured: Curve) -> list[tuple[int, float]]:
    """(step, |predicted / measured - 1|) at the evaluations that the prediction covers."""
    found = ((step, loss_at(prediction, step), loss) for step, loss in measured)
    return [(step, abs(p / loss - 1)) for step, p, loss in found if p is not None]
