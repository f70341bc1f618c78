"""What is computed from rows: curves, steps saved, differences and their intervals, the noise scale."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

from lawa_exp.storage.rows import Row, evaluated_alike, metric_in, name_of, policy_of

Curve = Sequence[tuple[int, float]]  # (step, value), by step


class Indexed(list[Row]):
    """Rows that many curves are taken from: each is looked at once, and each curve made once. They stay as they are."""

    def __init__(self, rows: Iterable[Row]) -> None:
        super().__init__(rows)
        self.by_name: dict[tuple[str, str], list[Row]] = {}
        for row in evaluated_alike(self, policy_of(self))[0]:
            self.by_name.setdefault((row["split"], name_of(row)), []).append(row)
        self.curves: dict[tuple[str, str, str], list[tuple[int, float]]] = {}

    @classmethod
    def of(cls, rows: list[Row]) -> Indexed:
        return rows if isinstance(rows, cls) else cls(rows)

    def curve(self, weights: str, split: str, metric: str) -> list[tuple[int, float]]:
        key = weights, split, metric
        if key not in self.curves:
            self.curves[key] = _curve(self.by_name.get((split, weights), []), metric)
        return self.curves[key]


def curve(rows: Iterable[Row], weights: str, split: str = "val", metric: str = "loss") -> list[tuple[int, float]]:
    """(step, value) of the evaluations of `weights`, a name as of `rows.name_of`; what is not finite is left out.

    Of one list of rows all curves have the same BatchNorm statistics: others than `policy_of` the rows are left out.
    """
    if isinstance(rows, Indexed):
        return rows.curve(weights, split, metric)
    rows = list(rows)
    alike, _ = evaluated_alike(rows, policy_of(rows))
    return _curve((r for r in alike if r["split"] == split and name_of(r) == weights), metric)


def _curve(rows: Iterable[Row], metric: str) -> list[tuple[int, float]]:
    chosen = ((r["step"], metric_in(r, metric)) for r in rows)
    return sorted((step, value) for step, value in chosen if value is not None and math.isfinite(value))


def noise_scale(rows: Iterable[Row], first: float, last: float) -> float | None:
    """The gradient noise scale tr(Sigma) / |G|^2 in samples, over the training rows of steps first to last.

    A ratio of means, for the estimates of single steps are unbiased and their ratio is not. None: no row has them
    (watch=noise_scale), or the mean of |G|^2 is not above 0, which more rows may mend.
    """
    inside = [r for r in rows if first <= r["step"] <= last and r.get("grad_squared") is not None]
    variance, squared = (sum(r[name] for r in inside) for name in ("grad_variance", "grad_squared"))
    return variance / squared if squared > 0 else None


T95: dict[float, float] = {  # two-sided 95% quantiles of Student's t by degrees of freedom
    **{1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228},
    **{11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093, 20: 2.086},
    **{21: 2.080, 22: 2.074, 23: 2.069, 24: 2.064, 25: 2.060, 26: 2.056, 27: 2.052, 28: 2.048, 29: 2.045, 30: 2.042},
    **{40: 2.021, 60: 2.000, 120: 1.980, math.inf: 1.960},
}


def t95(degrees: int) -> float:
    """Student's two-sided 95% quantile for so many degrees of freedom, within 0.001 (of none: infinite).

    Between the degrees of the table it is linear in their inverse.
    """
    if degrees < 1:
        return math.inf
    if degrees in T95:
        return T95[degrees]
    below, above = max(d for d in T95 if d < degrees), min(d for d in T95 if d > degrees)
    share = (1 / degrees - 1 / above) / (1 / below - 1 / above)
    return T95[above] + share * (T95[below] - T95[above])


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (nan for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """Mean of values - baseline, pair by pair, and half of its 95% interval (Student's t; nan for a single pair)."""
    mean, deviation = mean_and_deviation([v - b for v, b in zip(values, baseline, strict=True)])
    return mean, t95(len(values) - 1) * deviation / math.sqrt(len(values))


def steps_saved(baseline: Curve, step: int, value: float) -> tuple[float, bool]:
    """How many steps later the baseline reaches what an average has reached at `step` (lower is better).

    Returns (n, True): the first step at which the baseline's curve, linear between its evaluations, is at or under
    `value`, minus `step` (negative: the baseline was there before); (n, False): "> n", not reached within its run.
    """
    for (s0, v0), (s1, v1) in itertools.pairwise(baseline):
        if v0 <= value:
            return s0 - step, True
        if v1 <= value:
            return s0 + (s1 - s0) * (v0 - value) / (v0 - v1) - step, True
    if baseline and baseline[-1][1] <= value:
        return baseline[-1][0] - step, True
    return (baseline[-1][0] if baseline else step) - step, False


def estimates(batch_squared: float, micro_squared: float, batch: int, micro: int) -> tuple[float, float]:
    """Unbiased estimates of |G|^2 and tr(Sigma), of one step: `grad_squared` and `grad_variance` of its row.

    batch_squared: squared norm of the whole batch's gradient (the mean over `batch` samples). micro_squared: mean
    squared norm of the gradients of its micro-batches (each the mean over `micro` samples, a proper part of the batch).

    grad_squared estimates |G|^2, G the gradient over all data; grad_variance estimates tr(Sigma), Sigma the covariance
    of one sample's gradient. Both are noisy, and the first may be negative: average each of them over steps, then the
    gradient noise scale is grad_variance / grad_squared, in samples (`lawa_exp.results.statistics.noise_scale`).

    Samples count as drawn independently. Within an epoch of N they are drawn without replacement: then grad_squared
    estimates |G|^2 - tr(Sigma) / N, which matters where the noise scale is not small against N. With BatchNorm or
    dropout a micro-batch's gradient is no mean over its samples alone: the estimates hold for micro-batches so large.

    Where samples have unequal numbers of targets (a masked language model) the batch's gradient is the mean over its
    targets: micro-batches count by theirs, and a sample stands for as many targets as the batch's samples have on
    average. The estimates are then unbiased for targets drawn independently; those of one sample are not quite that.
    """
    grad_squared = (batch * batch_squared - micro * micro_squared) / (batch - micro)
    return grad_squared, (micro_squared - batch_squared) / (1 / micro - 1 / batch)
