"""Each average of a read-out against the live weights and the best one, with the noise of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lawa_exp.evaluation.read_out import ReadOut
from lawa_exp.readout.noise import halfway, measure_of, paired, saved_between, scatter, together
from lawa_exp.results.statistics import Curve, curve, steps_saved
from lawa_exp.results.tables import saved_text
from lawa_exp.seams.task import Metric, Task
from lawa_exp.storage.metrics import KNOWN, Metrics, own_metrics
from lawa_exp.storage.rows import Row, name_of
from lawa_exp.system.errors import Failed


@dataclass(frozen=True)
class Against:
    """A metric of an average and of the live weights after the last step; half: of the interval of the difference."""

    value: float
    live: float
    half: float

    @property
    def difference(self) -> float:
        return self.value - self.live

    def texts(self, metric: Metric) -> list[str]:
        """The value and the difference, as a table has them; empty where they are not known."""
        if math.isnan(self.difference):
            return ["" if math.isnan(self.value) else metric.text(self.value), ""]
        shown = f"{self.difference:+.{metric.digits}f}{plus_minus(self.half, metric.digits)}"
        return [metric.text(self.value), shown]


@dataclass(frozen=True)
class Line:
    """One average after the last step. half: of the 95% interval of `difference`, which is its loss less the live one.

    at: the step that its steps saved are taken from. saved_range: as text; "" where the noise is not known;
    saved_unclear: it includes 0. others: the task's own metrics by name.
    """

    id: str
    fields: Row
    loss: float
    difference: float
    half: float
    to_best: tuple[float, float]  # loss less that of the best weights, and half of its interval
    at: int
    saved: tuple[float, bool]  # as `steps_saved` gives them
    saved_range: str
    saved_unclear: bool
    others: Mapping[str, Against] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All averages of a read-out. lowest: the average with the lowest loss; best: it, or live where live is lower."""

    step: int
    live: float
    lines: list[Line]
    lowest: str
    best: str
    batches: int  # that the differences are paired by; 0: the noise of the samples is not known
    scatter: float  # of the live curve
    metrics: Metrics = field(default_factory=dict)  # those of `Line.others`

    def text_of_live(self, name: str) -> str:
        """One of these metrics, of the live weights; empty where it is not known."""
        live = self.lines[0].others[name].live
        return "" if math.isnan(live) else self.metrics[name].text(live)


def compare(
    result: ReadOut, rows: list[Row], ids: Sequence[str], task: Task | None = None, metrics: Metrics = KNOWN
) -> Comparison:
    """rows: val rows of the live weights and of the averages `ids`, whose lines are in that order.

    task: of the sums in `result`; metrics: those of the rows, where there is no task.

    Averages without a finite loss after the last step have none. Failed: none has one, or the live weights do not.
    """
    live = curve(rows, "live")
    step, live_loss = result.step, dict(live).get(result.step)
    if live_loss is None:
        raise Failed(f"the loss of the live weights after step {step:,} is not finite: nothing to compare with")
    curves = {id: points for id in ids if step in dict(points := curve(rows, id))}
    fields = {name_of(r): r for r in rows}
    if not curves:
        raise Failed(f"none of the averages has a finite loss after step {step:,}")
    losses = {"live": live_loss, **{id: dict(points)[step] for id, points in curves.items()}}
    lowest = min(curves, key=losses.__getitem__)
    best = lowest if losses[lowest] < live_loss else "live"
    spread = scatter([point for point in live if point[0] > 0])

    def paired_to(id: str, other: str) -> float:
        return paired(result.sums[id], result.sums[other])[1] if {id, other} <= result.sums.keys() else math.nan

    own = own_metrics(task.metrics if task else metrics)
    lines = []
    for id, points in curves.items():
        loss = losses[id]
        half = together(paired_to(id, "live"), 1.96 * spread)
        at = halfway([s for s, _ in points if is_new(fields[id], s)] or [s for s, _ in points], step)
        saved = steps_saved(live, at, dict(points)[at])
        saved_range, unclear = range_of_saved(live, at, dict(points)[at], half)
        to_best = (loss - losses[best], paired_to(id, best))
        others = {name: against_live(result, rows, id, name, task) for name in own}
        lines.append(
            Line(id, fields[id], loss, loss - live_loss, half, to_best, at, saved, saved_range, unclear, others)
        )
    batches = len(result.sums["live"]) if "live" in result.sums else 0
    return Comparison(step, live_loss, lines, lowest, best, batches if batches > 1 else 0, spread, own)


def against_live(result: ReadOut, rows: list[Row], id: str, name: str, task: Task | None) -> Against:
    """A metric of the average `id` after the last step. Its noise is known where its sums are."""
    live = curve(rows, "live", metric=name)
    value, of_live = (dict(c).get(result.step, math.nan) for c in (curve(rows, id, metric=name), live))
    spread = scatter([point for point in live if point[0] > 0])
    half = together(half_of_samples(result, id, "live", name, task), 1.96 * spread)
    return Against(value, of_live, half)


def half_of_samples(result: ReadOut, name: str, other: str, metric: str, task: Task | None) -> float:
    """Of the interval of the difference in a metric between two names of rows, from the samples alone; nan: not
    known."""
    if task is None or not {name, other} <= result.sums.keys():
        return math.nan
    measure, prepared = measure_of(task, metric)
    return measure.difference(prepared(result.sums[name]), prepared(result.sums[other]))[1]


def range_of_saved(live: Curve, at: int, value: float, half: float) -> tuple[str, bool]:
    """The steps saved for a loss plus and minus `half` as text ("": nan), and whether they include 0."""
    bounds = saved_between(live, at, value, half)
    if bounds is None:
        return "", False
    return " to ".join(saved_text(*b) for b in bounds), bounds[0][0] <= 0 <= bounds[1][0]


def is_new(fields: Row, step: int) -> bool:
    """Whether an average with these settings has taken in the weights of `step`, where it is defined; else it is stale.

    A window of spacing 200 is at step 1,100 still that of step 1,000, and lags behind the live weights.
    """
    return step % fields.get("spacing", fields.get("every", 1)) == 0


def is_inconclusive(difference: float, half: float) -> bool:
    """Whether its 95% interval includes 0; False where that is not known."""
    return abs(difference) <= half


def verdict(difference: float, half: float) -> str:
    """The difference in loss to the live weights in words."""
    if math.isnan(half):
        return "no interval, so not known whether it is significant"
    if is_inconclusive(difference, half):
        return "inconclusive"
    return "significantly better" if difference < 0 else "significantly worse"


def plus_minus(half: float, digits: int = 4) -> str:
    """` ± 0.0100`, or nothing where it is not known."""
    return "" if math.isnan(half) else f" ± {half:.{digits}f}"
