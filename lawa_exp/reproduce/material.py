"""What the plots are made of: finished runs by the names of the forms, and averages chosen on val."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa_exp.reproduce.arms import Arm, Missing, Run, fits, measure
from lawa_exp.reproduce.book import Book
from lawa_exp.storage.rows import Row, each_row

SCHEDULES = ("constant", "cosine", "annealed")  # names of sets in the forms
PUBLISHED, FAIR = "as_published", "fair"
LIVE_WEIGHTS = "live"
EARLY = 0.3  # of the budget: where averaging can hurt


@dataclass(frozen=True)
class Material:
    """names, fair: what the forms call sets, peaks and averages (`trainings.yaml`), as published and fair.

    runs: the finished ones of a set; it raises Missing where there are none. cache: a folder for what is computed.
    """

    names: Mapping[str, Any]
    fair: Mapping[str, Any]
    runs: Callable[[str], Sequence[Run]]
    cache: Path

    @classmethod
    def of(cls, book: Book, scale: str, runs: Callable[[str], Sequence[Run]], cache: Path) -> Material:
        found = {f.recipe: f.names.get(scale, {}) for f in book.forms if f.data == "embedded"}
        return cls(found.get(PUBLISHED, {}), found.get(FAIR, {}), runs, cache)

    def all(self, name: str) -> list[Run]:
        """The runs of the set that the form calls `name`; none where it has no such set, or nothing is finished."""
        try:
            return list(self.runs(self.names[name])) if name in self.names else []
        except Missing:
            return []

    def at(self, name: str, peak: str = "usual") -> list[Run]:
        """Those at the peak that the form calls so."""
        if peak not in self.names:
            return []
        return [run for run in self.all(name) if fits(run, {"lr.peak": self.names[peak]})]

    def schedules(self, peak: str = "usual") -> dict[str, list[Run]]:
        """{title: runs} of what there is of constant, cosine and annealed."""
        found = {name: self.at(name, peak) for name in SCHEDULES}
        return {schedule(runs[0]): runs for runs in found.values() if runs}

    def compared(self, runs: Sequence[Run], at: float = 1.0) -> dict[str, tuple[str, str]]:
        """{key of a look: (label, id)}: published LAWA and the best LAWA, EMA and SWA on val at that progress."""
        asked = {"lawa": self.names.get("lawa"), "best lawa": self.fair.get("lawa")}
        asked |= {kind: self.fair.get(kind) for kind in ("ema", "swa")}
        labels = {"lawa": "LAWA as published", "best lawa": "best LAWA", "ema": "best EMA", "swa": "best SWA"}
        found = {key: best(runs, pattern, at) for key, pattern in asked.items() if pattern}
        return {key: (labels[key], id) for key, id in found.items() if id}


def best(runs: Sequence[Run], pattern: str, at: float = 1.0) -> str | None:
    """The average of the pattern with the lowest mean val loss at that progress; None: no run has one there."""
    try:
        return measure(Arm(("these",), {}, pattern, at, split="val"), {"these": runs}).weights
    except Missing:
        return None


def schedule(run: Run) -> str:
    """`constant rate`, `cosine to 10% of the peak`."""
    kind, ratio = run.config.get("lr.kind"), run.config.get("lr.final_ratio")
    if ratio is None:
        return f"{kind} rate"
    return f"{kind} to {float(ratio):.0%} of the peak" if float(ratio) else f"{kind} to zero"


def peak(run: Run) -> float:
    return float(run.config["lr.peak"])


def at_progress(run: Run, share: float) -> int:
    """The last evaluation at or before that share of the budget."""
    return max((s for s in run.curve("live") if s <= share * run.steps + 1e-9), default=0)


def losses(runs: Sequence[Run], weights: str) -> dict[float, list[float]]:
    """{step: val loss of each seed}, the first weights left out; steps that every seed has."""
    curves = [run.curve(weights) for run in runs]
    return {s: [c[s] for c in curves] for s in sorted(set.intersection(*map(set, curves))) if s > 0}


def gains(runs: Sequence[Run], weights: str) -> dict[float, list[float]]:
    """{step: live minus average on val, of each seed}, but for where the average is the live weights themselves."""
    live, average = losses(runs, LIVE_WEIGHTS), losses(runs, weights)
    found = {s: [a - b for a, b in zip(live[s], average[s], strict=True)] for s in average if s in live}
    return {s: values for s, values in found.items() if any(values)}


def windows(runs: Sequence[Run], averager: str = "lawa") -> dict[tuple[int, int], str]:
    """{(k, spacing): id} of the windows that every run has."""
    found = [
        {(r["k"], r["spacing"]): r["weights"] for r in run.rows if r.get("averager") == averager and "k" in r}
        for run in runs
    ]
    return {cell: id for cell, id in sorted(found[0].items()) if all(cell in f for f in found)} if found else {}


def training_rows(run: Run) -> list[Row]:
    return [r for r in each_row(run.folder / "metrics.jsonl") if r["split"] == "train"]


def rates(run: Run) -> dict[int, float]:
    """{step: the rate of the update that completed it}, where the training wrote it down."""
    return {r["step"]: r["lr"] for r in training_rows(run) if r.get("lr") is not None}
