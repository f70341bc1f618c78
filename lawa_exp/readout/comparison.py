"""Each average of a read-out against the live weights and the best one, with the noise of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lawa_exp.evaluation.read_out import ReadOut
from lawa_exp.readout.noise import halfway, paired, saved_between, scatter, together
from lawa_exp.results.statistics import Curve, curve, steps_saved
from lawa_exp.results.tables import saved_text
from lawa_exp.storage.rows import Row, name_of
from lawa_exp.system.errors import Failed


@dataclass(frozen=True)
class Line:
    """One average after the last step. half: of the 95% interval of `difference`, which is its loss less the live one.

    at: the step that its steps saved are taken from. saved_range: as text; "" where the noise is not known;
    saved_unclear: it includes 0.
    """

    id: str
    fields: Row
    loss: float
    difference: float
    half: float
    to_best: tuple[float, float]  # loss less that of the best average, and half of its interval
    at: int
    saved: tuple[float, bool]  # as `steps_saved` gives them
    saved_range: str
    saved_unclear: bool


@dataclass(frozen=True)
class Comparison:
    """All averages of a read-out. best: the id that val chooses."""

    step: int
    live: float
    lines: list[Line]
    best: str
    batches: int  # that the differences are paired by; 0: the noise of the samples is not known
    scatter: float  # of the live curve


def compare(result: ReadOut, rows: list[Row], ids: Sequence[str]) -> Comparison:
    """rows: val rows of the live weights and of the averages `ids`, whose lines are in that order.

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
    best = min(curves, key=lambda id: dict(curves[id])[step])
    spread = scatter([point for point in live if point[0] > 0])

    def paired_to(id: str, other: str) -> float:
        return paired(result.sums[id], result.sums[other])[1] if {id, other} <= result.sums.keys() else math.nan

    lines = []
    for id, points in curves.items():
        loss = dict(points)[step]
        half = together(paired_to(id, "live"), 1.96 * spread)
        at = halfway([s for s, _ in points if is_new(fields[id], s)] or [s for s, _ in points], step)
        saved = steps_saved(live, at, dict(points)[at])
        saved_range, unclear = range_of_saved(live, at, dict(points)[at], half)
        to_best = (loss - dict(curves[best])[step], paired_to(id, best))
        lines.append(Line(id, fields[id], loss, loss - live_loss, half, to_best, at, saved, saved_range, unclear))
    batches = len(result.sums["live"]) if "live" in result.sums else 0
    return Comparison(step, live_loss, lines, best, batches if batches > 1 else 0, spread)


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


def not_significant(difference: float, half: float) -> bool:
    """Whether its 95% interval includes 0; False where that is not known."""
    return abs(difference) <= half


def verdict(difference: float, half: float) -> str:
    """The difference in loss to the live weights in words."""
    if math.isnan(half):
        return "no interval, so not known whether it is significant"
    if not_significant(difference, half):
        return "not significant"
    return "significantly better" if difference < 0 else "significantly worse"


def plus_minus(half: float) -> str:
    """` ± 0.0100`, or nothing where it is not known."""
    return "" if math.isnan(half) else f" ± {half:.4f}"
