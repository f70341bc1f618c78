"""From finished runs to the numbers that a rule speaks of: one for each seed, choices made on val, reported on test."""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lawa_exp.results.statistics import curve
from lawa_exp.seams.task import Metric
from lawa_exp.storage.metrics import KNOWN, Metrics
from lawa_exp.storage.rows import Row, averager_ids, metric_in, name_of
from lawa_exp.system.errors import UserError

LOSS = "loss"


@dataclass(frozen=True)
class Run:
    """A finished training of a set. config: flat, `lr.peak`; rows: val; test: of the last step; metrics: its task's."""

    folder: Path
    steps: int
    seed: int
    config: Mapping[str, Any]
    rows: Sequence[Row]
    test: Sequence[Row]
    readouts: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=lambda: KNOWN)

    def metric_named(self, metric: str) -> Metric:
        """What is known of a metric. UserError: its rows have no such one."""
        if metric not in self.metrics:
            raise UserError(f"metric: {metric}: {self.folder} has no such metric; expected {', '.join(self.metrics)}")
        return self.metrics[metric]

    def curve(self, weights: str, metric: str = LOSS, readout: str | None = None) -> dict[int, float]:
        """{step: value on val}; accuracies as the share that is wrong, so that lower is better everywhere.

        So is every metric of which higher is better: see `Metric.as_loss`.
        """
        known = self.metric_named(metric)
        rows = self.readouts.get(readout, ()) if readout and weights != "live" else self.rows
        points = curve(rows, weights, metric=metric)
        return {step: known.as_loss(v) for step, v in points if step <= self.steps}

    def tested(self, weights: str, metric: str = LOSS) -> float | None:
        known = self.metric_named(metric)
        found = [metric_in(r, metric) for r in self.test if name_of(r) == weights and r["step"] == self.steps]
        if not found or found[0] is None:
            return None
        return float(known.as_loss(found[0]))


@dataclass(frozen=True)
class Arm:
    """What a name in a rule means.

    sets: of trainings. where: values of the runs' settings (`lr.peak: 0.004`, `steps: 500`). weights: live, an
    averager's id, or a pattern (`lawa-*`). at: the step, as a share of the budget. readout: a further read-out that has
    the weights. split=val: also at the end of the budget, next to what has val only. Where more than one group of runs
    (that differ in the seed alone) or more than one average fits, the lowest mean val loss at that step chooses, among
    those with the most seeds: what diverged for a seed is not chosen by its others.
    """

    sets: tuple[str, ...]
    where: Mapping[str, object]
    weights: str = "live"
    at: float = 1.0
    metric: str = LOSS
    readout: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Measured:
    """An arm's numbers. values: by seed, on test at the end of the budget, else on val; curves: val, by seed.

    group: what tells the chosen runs apart; runs: those, one for each seed; candidates: how many there were to choose
    from.
    """

    arm: Arm
    values: Mapping[int, float]
    curves: Mapping[int, Mapping[int, float]]
    steps: int
    weights: str
    group: str
    candidates: int
    split: str
    runs: Sequence[Run]

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the first of the runs."""
        return self.runs[0].config

    def label(self) -> str:
        chosen = f", best of {self.candidates} on val" if self.candidates > 1 else ""
        return f"{self.weights} of {self.group}{chosen}" if self.group else f"{self.weights}{chosen}"


class Missing(Exception):
    """What a rule needs is not there (yet): the reason, for the table."""


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by everything but the seed; names say the settings in which the groups differ."""
    ignored = ("seed", "recipe")
    keyed: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        key = tuple(sorted((k, str(v)) for k, v in run.config.items() if k not in ignored and not_logistics(k)))
        keyed.setdefault((*key, ("steps", str(run.steps))), []).append(run)
    differing = {k for key in keyed for k, v in key if any(dict(other).get(k) != v for other in keyed)}
    names = {}
    for key, members in keyed.items():
        told = [(k, v) for k, v in key if k in differing]
        names[" ".join(f"{k}={v}" for k, v in told)] = members
    return names


def not_logistics(key: str) -> bool:
    """Whether a setting can tell trainings apart (averagers, saving and the like cannot)."""
    return key.split(".")[0] in ("model", "dataset", "optimizer", "lr", "batch", "scaling", "feedback", "fault")


def fits(run: Run, where: Mapping[str, object]) -> bool:
    return all(same(run.steps if k == "steps" else run.config.get(k), v) for k, v in where.items())


def same(ours: object, required: object) -> bool:
    if isinstance(required, int | float) and isinstance(ours, int | float) and not isinstance(required, bool):
        return math.isclose(ours, required, rel_tol=1e-9)
    return str(ours) == str(required)


def measure(arm: Arm, trained: Mapping[str, Sequence[Run]]) -> Measured:
    """Chooses the arm's runs and average on val and reads its numbers. Missing: there is none."""
    for name in arm.sets:
        if name not in trained:
            raise UserError(f"no set of trainings {name}")
    runs = [run for name in arm.sets for run in trained[name] if fits(run, arm.where)]
    if not runs:
        told = " ".join(f"{k}={v}" for k, v in arm.where.items())
        raise Missing(f"no finished run of {', '.join(arm.sets)}" + (f" with {told}" if told else ""))
    found: list[tuple[float, str, str, list[Run]]] = []
    for name, members in groups(runs).items():
        ids = ["live"] if arm.weights == "live" else averages(members, arm)
        for id in ids:
            at_step = [run.curve(id, arm.metric, arm.readout).get(step_of(arm, run)) for run in members]
            if all(v is not None for v in at_step):
                found.append((statistics.fmean(v for v in at_step if v is not None), name, id, members))
    if not found:
        raise Missing(f"{arm.weights} of {', '.join(arm.sets)} has no value at {arm.at:.0%} of the budget")
    seeds = max(len(members) for *_, members in found)
    _, name, id, members = min((f for f in found if len(f[3]) == seeds), key=lambda f: f[0])
    curves = {run.seed: run.curve(id, arm.metric, arm.readout) for run in members}
    steps = {run.seed: step_of(arm, run) for run in members}
    tested = {run.seed: run.tested(id, arm.metric) for run in members}
    on_test = arm.at == 1 and arm.split is None and arm.readout is None and all(v is not None for v in tested.values())
    values = tested if on_test else {seed: curves[seed][steps[seed]] for seed in curves}
    return Measured(
        arm,
        {seed: float(v) for seed, v in sorted(values.items()) if v is not None},
        curves,
        members[0].steps,
        id,
        name,
        len(found),
        "test" if on_test else "val",
        members,
    )


def averages(runs: Sequence[Run], arm: Arm) -> list[str]:
    """The ids that fit the pattern and that every run has."""
    rows = [run.readouts.get(arm.readout, ()) if arm.readout else run.rows for run in runs]
    common = [id for id in averager_ids(rows[0]) if all(id in averager_ids(r) for r in rows[1:])]
    return [id for id in common if fnmatch.fnmatchcase(id, arm.weights)]


def step_of(arm: Arm, run: Run) -> int:
    """The last evaluation at or before the arm's share of the budget."""
    steps = [s for s in run.curve("live", arm.metric) if s <= arm.at * run.steps + 1e-9]
    return max(steps, default=0)
