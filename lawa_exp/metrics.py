"""Rows of metrics.jsonl, and what is computed from them."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lawa_exp.config import Failed

FLUSH_SECONDS = 5.0  # rows are in the file after so long, and at each evaluation

Curve = Sequence[tuple[int, float]]  # (step, value), by step


def encode(row: dict[str, Any]) -> str:
    """One JSON line; a number that is not finite becomes null and is named in `nonfinite`."""
    bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        row = {k: None if k in bad else v for k, v in row.items()} | {"nonfinite": bad}
    return json.dumps(row) + "\n"


class Rows:
    """An append-only JSONL file that a resumed run cuts back to where its state was saved."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        """keep_bytes: the length to cut the file back to (None: leave it as it is)."""
        path.touch()
        if keep_bytes is not None:
            if path.stat().st_size < keep_bytes:
                raise OSError(
                    f"{path} has {path.stat().st_size} bytes, less than the {keep_bytes} its state was saved with"
                )
            os.truncate(path, keep_bytes)
        self.file = path.open("ab")
        self.flushed = time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(encode(row).encode())
        if time.monotonic() - self.flushed > FLUSH_SECONDS:  # for those who watch
            self.file.flush()
            self.flushed = time.monotonic()

    def flush(self) -> None:
        self.file.flush()

    def sync(self) -> int:
        """Everything written so far is on the disk; returns the file's length in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line that a kill cut short is left out. A missing file has no rows.

    Failed names the first line that is no JSON.
    """
    if not path.exists():
        return []
    text = path.read_text(errors="replace")
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise Failed(f"{path}: line {number} is damaged; mend it or choose another run_dir") from None
    return rows


def curve(
    rows: Iterable[dict[str, Any]], weights: str, split: str = "val", metric: str = "loss"
) -> list[tuple[int, float]]:
    """(step, value) of the evaluations of `weights` ("live" or an averager's id); what is not finite is left out."""
    chosen = ((r["step"], r.get(metric)) for r in rows if r["split"] == split and r["weights"] == weights)
    return sorted((step, value) for step, value in chosen if value is not None and math.isfinite(value))


def with_newer(rows: Iterable[dict[str, Any]], newer: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, those that are in `newer` again as they are there."""
    again = {(r["step"], r["split"], r["weights"]) for r in newer if "weights" in r}
    return [*(r for r in rows if (r["step"], r["split"], r["weights"]) not in again), *newer]


def averager_ids(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The averagers that were evaluated, in order of appearance."""
    return list(dict.fromkeys(r["weights"] for r in rows if r["weights"] != "live"))


def noise_scale(rows: Iterable[dict[str, Any]], first: float, last: float) -> float | None:
    """The gradient noise scale tr(Sigma) / |G|^2 in samples, over the training rows of steps first to last.

    A ratio of means, for the estimates of single steps are unbiased and their ratio is not. None: no row has them
    (logger.noise_scale=true), or the mean of |G|^2 is not above 0, which more rows may mend.
    """
    inside = [r for r in rows if first <= r["step"] <= last and r.get("grad_squared") is not None]
    variance, squared = (sum(r[name] for r in inside) for name in ("grad_variance", "grad_squared"))
    return variance / squared if squared > 0 else None


# Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom
T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131]


def t95(degrees: int) -> float:
    """Student's two-sided 95% quantile for so many degrees of freedom (from 16 on the normal one)."""
    return T95[degrees - 1] if 0 < degrees <= len(T95) else 1.96


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
