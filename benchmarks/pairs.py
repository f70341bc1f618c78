"""Two things timed side by side: pairs A B, B A, A B, ... in one process, until the interval of their ratio is narrow.

Time drifts on any machine (clocks, neighbours, heat); the two halves of a pair drift alike, and the order alternates,
so that neither side profits. The ratio is the geometric mean of the pairs' ratios, its 95% interval is Student's t on
their logarithms. The rule that stops it looks at the width of the interval only, never at the ratio.
"""

from __future__ import annotations

import math
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lawa_exp.storage.rundir import cpu_name, git_state


class Pairs:
    """The times of two sides, taken in turns: whoever runs them asks for `turn`, and gives the time to `record`.

    strata: weights, where pairs are of several kinds that are to count in other shares than they are measured in (they
    sum to 1); `pattern` is the kind of each pair, repeated. The ratio is then the weighted sum of the kinds' ratios.
    """

    def __init__(
        self,
        within: float = 0.02,
        max_pairs: int = 500,
        max_seconds: float = 120.0,
        min_pairs: int = 10,
        warm_up: int = 3,
        strata: Sequence[float] = (1.0,),
        pattern: Sequence[int] = (0,),
    ) -> None:
        """within: the half-width of the 95% interval to reach. warm_up: pairs that do not count."""
        assert math.isclose(sum(strata), 1) and set(pattern) == set(range(len(strata)))
        self.within, self.max_pairs, self.max_seconds, self.min_pairs = within, max_pairs, max_seconds, min_pairs
        self.warm_up, self.strata, self.pattern = warm_up, strata, pattern
        self.times: list[tuple[int, float, float]] = []  # (stratum, seconds of A, seconds of B), one a pair
        self.begun = 0  # pairs, the warm-up included
        self.half: list[float] = []  # times of the pair at hand, in the order taken
        self.started: float | None = None  # when the first pair that counts began
        self.done = False

    @property
    def turn(self) -> int:
        """The side to run now: 0 (A) or 1 (B)."""
        return (self.begun + len(self.half)) % 2

    @property
    def stratum(self) -> int:
        """The kind of the pair at hand."""
        return self.pattern[self.begun % len(self.pattern)]

    @property
    def counts(self) -> bool:
        """Whether the pair at hand is past the warm-up."""
        return self.begun >= self.warm_up

    def record(self, seconds: float) -> None:
        """The time that the side `turn` has just taken."""
        self.half.append(seconds)
        if len(self.half) < 2:
            return
        a, b = self.half if self.begun % 2 == 0 else reversed(self.half)
        if self.counts:
            self.times.append((self.stratum, a, b))
        self.begun += 1
        self.half = []
        if self.counts and self.started is None:
            self.started = time.perf_counter()
        self.done = self.reached or len(self.times) >= self.max_pairs or self.seconds > self.max_seconds

    @property
    def seconds(self) -> float:
        """How long the pairs that count have taken together."""
        return time.perf_counter() - self.started if self.started is not None else 0.0

    @property
    def reached(self) -> bool:
        return len(self.times) >= self.min_pairs and self.interval()[1] <= self.within

    def interval(self) -> tuple[float, float]:
        """The ratio A/B and the half-width of its 95% interval (infinite while there are too few pairs)."""
        ratio, variance, parts = 0.0, 0.0, 0.0
        for stratum, weight in enumerate(self.strata):
            logs = [math.log(a / b) for s, a, b in self.times if s == stratum]
            if len(logs) < 2:
                return (weighted_median_ratio(self), math.inf) if self.times else (math.nan, math.inf)
            share = weight * math.exp(statistics.fmean(logs))
            error = share**2 * statistics.variance(logs) / len(logs)
            ratio, variance, parts = ratio + share, variance + error, parts + error**2 / (len(logs) - 1)
        if variance == 0:
            return ratio, 0.0
        return ratio, student(variance**2 / parts) * math.sqrt(variance)  # Welch-Satterthwaite

    def median(self, side: int, stratum: int | None = None) -> float:
        """The median seconds of a side: of one kind of pair, or of all kinds by their weights."""
        if stratum is None:
            return sum(w * self.median(side, s) for s, w in enumerate(self.strata))
        return statistics.median(t[1 + side] for t in self.times if t[0] == stratum)

    def verdict(self) -> str:
        """The number of pairs, and whether they were enough."""
        if self.reached:
            return f"{len(self.times)}"
        return f"{len(self.times)}, not enough for ±{self.within:g}: stopped after {self.seconds:.0f} s"


def run(a: Callable[[], None], b: Callable[[], None], pairs: Pairs) -> Pairs:
    """Times two functions in turns until `pairs` is done."""
    while not pairs.done:
        start = time.perf_counter()
        (a, b)[pairs.turn]()
        pairs.record(time.perf_counter() - start)
    return pairs


def weighted_median_ratio(pairs: Pairs) -> float:
    """The medians of the pairs' ratios, by the weights of their kinds: beside the mean, to see what outliers did."""
    return sum(w * statistics.median(r) if r else math.nan for w, r in _ratios(pairs))


def median_interval(pairs: Pairs, resamples: int = 2000) -> tuple[float, float]:
    """The 95% interval of `weighted_median_ratio`: percentiles of a bootstrap within each kind of pair."""
    draw, kinds = random.Random(0), _ratios(pairs)
    found = [sum(w * statistics.median(draw.choices(r, k=len(r))) for w, r in kinds) for _ in range(resamples)]
    cuts = statistics.quantiles(found, n=40)
    return cuts[0], cuts[-1]


def _ratios(pairs: Pairs) -> list[tuple[float, list[float]]]:
    """Weight and ratios of each kind of pair."""
    return [(w, [a / b for s, a, b in pairs.times if s == i]) for i, w in enumerate(pairs.strata)]


def student(freedom: float) -> float:
    """The 97.5% quantile of Student's t (Abramowitz and Stegun 26.7.5; within 0.1% from 4 degrees of freedom on)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**n for n, term in enumerate(terms))


HEADER = ("what", "A", "B", "A, median", "B, median", "mean A/B", "95% interval", "median A/B", "its interval", "pairs")


def row(what: str, a: str, b: str, pairs: Pairs, per: int = 1) -> tuple[str, ...]:
    """A line of the table; per: how many steps one timed unit holds (times are given for one)."""
    ratio, half = pairs.interval()
    return (
        what,
        a,
        b,
        f"{pairs.median(0) / per * 1e3:.1f} ms",
        f"{pairs.median(1) / per * 1e3:.1f} ms",
        f"{ratio:.4f}",
        f"{ratio - half:.4f} to {ratio + half:.4f}" if math.isfinite(half) else "too few pairs",
        f"{weighted_median_ratio(pairs):.4f}",
        "{:.4f} to {:.4f}".format(*median_interval(pairs)) if math.isfinite(half) else "too few pairs",
        pairs.verdict(),
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown_command() -> str:
    """The command that is running, without places of this machine: of an absolute path only the last part."""
    words = [Path(w).name if Path(w).is_absolute() else w for w in sys.argv[1:]]
    return f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(words)}".strip()


def machine(threads: int | None, load_before: float) -> str:
    """Where it was measured, in one paragraph. load_before: of the machine, before this process began to work."""
    git = git_state()
    commit = f"commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git else "no commit"
    return (
        f"{cpu_name()}, {os.cpu_count()} cores, {threads} threads; torch {torch.__version__}, "
        f"Python {platform.python_version()}; {commit}; {time.strftime('%Y-%m-%d')}; load of the machine before it "
        f"began {load_before:.2f} (a busy machine makes the intervals wide and single times long)."
    )


def publish(title: str, parts: Sequence[str], out: Path | None) -> None:
    """Prints a page with the command that made it and writes it to `out`."""
    page = "\n\n".join([f"# {title}", f"Made by `{shown_command()}`.", *parts]) + "\n"
    print(page, flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page)
