"""Spikes of a loss curve, and what a known one, such as an injected fault, does to the live weights and averages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lawa_exp.results.statistics import Curve, curve
from lawa_exp.storage.rows import Row, averager_ids

TO_DEVIATION = 1.4826  # times the median absolute deviation is the standard deviation, where values are normal


@dataclass(frozen=True)
class Spike:
    """first, last: the steps of its first and last value above the bound; peak: that of the highest.

    level: the median before it; height: of the peak above the level, and deviations: the same in robust deviations.
    """

    first: int
    last: int
    peak: int
    level: float
    height: float
    deviations: float


def spikes(points: Curve, window: int = 50, deviations: float = 6.0, gap: int = 5) -> list[Spike]:
    """Where a curve, such as `curve(rows, "live", "train")`, is far above what came just before, by step.

    A value is too high if it exceeds the median of the `window` values before it by more than `deviations` times
    1.4826 of their median absolute deviation: the Hampel identifier (Davies and Gather 1993) with a window that looks
    back only. Median and MAD ignore what less than half of the window does, the spike's own values among it; mean and
    standard deviation would grow with it and hide it. A curve that falls has a higher median and a wider MAD than the
    noise alone, so the rule errs towards no spike. A level that stays high is one spike, over after half a window; a
    steady rise is none. Too high values with up to `gap` others between them are one spike; the first `window` values
    are none. A short window knows the noise less well: with 50 values hardly any of normal noise are too high, with 20
    one in 5,000, with 10 (a val curve of few evaluations) one in 400.
    """
    if len(points) <= window:
        return []
    steps, values = [s for s, _ in points], np.array([v for _, v in points], np.float64)
    before = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]
    levels = np.median(before, axis=1)
    spreads = TO_DEVIATION * np.median(np.abs(before - levels[:, None]), axis=1)
    high = np.flatnonzero(values[window:] > levels + deviations * spreads)
    found = []
    for run in np.split(high, np.flatnonzero(np.diff(high) > gap + 1) + 1) if len(high) else []:
        first, last = int(run[0]), int(run[-1])
        peak = first + int(values[window + first : window + last + 1].argmax())
        level, spread = float(levels[first]), float(spreads[first])
        height = float(values[window + peak]) - level
        begun, ended, highest = (steps[window + i] for i in (first, last, peak))
        found.append(Spike(begun, ended, highest, level, height, height / spread if spread else math.inf))
    return found


@dataclass(frozen=True)
class Recovery:
    """What a fault after step `at` did to one curve.

    level: the last evaluation up to `at`. excess: the highest evaluation after it, at step `peak`, less the level;
    not above 0 where the curve never rose. steps: from `at` to the first evaluation from the peak on that is at or
    below the level, 0 where it never rose; None: it does not come back, not within the `left` steps that there are.
    """

    level: float
    peak: int
    excess: float
    steps: int | None
    left: int


def recovery(points: Curve, at: int, until: int | None = None) -> Recovery | None:
    """Of a curve, by step, across what begins after step `at`; None where it has no value up to there, or none after.

    The peak counts, not the first value: a window takes in bad snapshots late and may first go on falling.
    until: the last step that is looked at, before another spike.
    """
    before = [v for s, v in points if s <= at]
    after = [(s, v) for s, v in points if at < s and (until is None or s <= until)]
    if not before or not after:
        return None
    level = before[-1]
    peak, highest = max(after, key=lambda point: (point[1], -point[0]))
    back = next((s - at for s, v in after if s >= peak and v <= level), None)
    return Recovery(level, peak, highest - level, 0 if highest <= level else back, after[-1][0] - at)


def recoveries(rows: Iterable[Row], at: int, until: int | None = None) -> dict[str, Recovery]:
    """By weights, "live" first: from a run's val rows, `recovery` of the live curve and of each average's own.

    Averages that are not defined by step `at` have no level, and are left out.
    """
    rows = [r for r in rows if r["split"] == "val"]
    found = {id: recovery(curve(rows, id), at, until) for id in ("live", *averager_ids(rows))}
    return {id: r for id, r in found.items() if r is not None}
