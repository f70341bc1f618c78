"""Which average to take: the choice on val with its noise known, and what it is worth where it was not chosen.

The rule, fixed before any test loss was looked at:

1. Every candidate (the live weights are one) is evaluated after the same step on the same batches of val.
2. The best has the lowest loss (the highest accuracy, and of equal ones the lowest loss). A candidate is as good as the
   best unless its loss is higher by more than one standard error of the difference, paired by batch: the
   one-standard-error rule (Breiman et al. 1984, Classification and Regression Trees, section 3.4.3; Hastie et al. 2009,
   section 7.10). Weights that are nearly equal have a tiny error, so what is smaller than the metric's `tolerance`, far
   below what another seed changes, counts as equal, too.
3. Of those the cheapest is taken: live, then the average that observes the weights least often, then the one that holds
   the fewest copies of them; of equally cheap ones that of the lowest loss.

The lowest of many losses is too low by chance. So the gain is estimated by cross-fitting: val's batches are cut into
FOLDS parts of neighbours; for each part the rule chooses on the others, and its choice is measured on that part (nested
cross-validation: Varma and Simon 2006, Bias in error estimation when using cross-validation for model selection; Cawley
and Talbot 2010). Every batch is measured with a candidate that it had no vote in. Slightly pessimistic: each choice is
made on fewer batches. Its interval is that of the samples, for these weights: another seed is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lawa_exp.averaging import AVERAGERS
from lawa_exp.config.rules import setting_names
from lawa_exp.readout.noise import MEAN, Measure
from lawa_exp.results.statistics import t95

FOLDS = 5
FEWEST_BATCHES = 2 * FOLDS

Sums = Mapping[str, np.ndarray]  # by id: float64 [batches, columns], such as summed loss (or errors) and targets
Cost = tuple[float, int]


def cost(fields: Mapping[str, Any]) -> Cost:
    """Of a row's average in training: observations a step, and copies of the weights that it holds; live: nothing."""
    if "averager" not in fields:
        return 0.0, 0
    cls = AVERAGERS[fields["averager"]]
    settings = cls(**{name: fields[name] for name in setting_names(cls)})
    return 1 / settings.period, settings.observations if settings.windowed else settings.copies()


def standard_error(sums: np.ndarray, baseline: np.ndarray, by: Measure = MEAN) -> tuple[float, float]:
    """Difference in loss, and its standard error, paired by batch."""
    difference, half = by.difference(sums, baseline)
    return difference, half / t95(len(sums) - 1)


def choose(sums: Sums, costs: Mapping[str, Cost], tolerance: float, by: Measure = MEAN) -> tuple[str, str]:
    """(the choice, the best): see rules 2 and 3 above."""
    values = {id: (by.value(own), by.tie(own)) for id, own in sums.items()}
    best = min(sums, key=lambda id: (values[id], costs[id]))
    compared = {id: standard_error(own, sums[best], by) for id, own in sums.items()}
    as_good = [id for id, (difference, error) in compared.items() if difference <= max(error, tolerance)]
    return min(as_good, key=lambda id: (costs[id], values[id])), best


def cross_fitted(
    sums: Sums, costs: Mapping[str, Cost], tolerance: float, baseline: str, by: Measure = MEAN
) -> tuple[float, float]:
    """Difference in loss between what the rule chooses and `baseline`, and half of its 95% interval.

    The batches of all parts are measured together: of an area under a curve scores of several choices are ranked as one
    model's.
    """
    batches = np.arange(len(sums[baseline]))
    measured = np.empty_like(sums[baseline])
    for part in np.array_split(batches, FOLDS):
        others = np.setdiff1d(batches, part)
        chosen, _ = choose({id: own[others] for id, own in sums.items()}, costs, tolerance, by)
        measured[part] = sums[chosen][part]
    return by.difference(measured, sums[baseline])
