"""Tables of losses and of steps saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lawa_exp.results.savings import Saving, longest_saving
from lawa_exp.results.statistics import curve
from lawa_exp.seams.task import Metric
from lawa_exp.storage.metrics import KNOWN
from lawa_exp.storage.rows import Row, averager_ids, left_out

NATS = "nats per token"  # of images: nats per image


@dataclass(frozen=True)
class AtEnd:
    """Weights after the last step. value, to_live: of a metric on val, and less that of the live weights; None: not
    evaluated there. saving: the longest one; None of the live weights. best: no others have a better value."""

    weights: str
    value: float | None
    to_live: float | None
    saving: Saving | None
    best: bool


def at_end(rows: list[Row], metric: str = "loss", properties: Metric = KNOWN["loss"]) -> tuple[int, list[AtEnd]]:
    """The last step, and a line for each of the weights; none where nothing but the first weights was evaluated."""
    live = curve(rows, "live", metric=metric)
    if not any(step > 0 for step, _ in live):
        return 0, []
    end, of_live = live[-1]
    curves = {id: points for id in ["live", *averager_ids(rows)] if (points := curve(rows, id, metric=metric))}
    last = {id: value for id, points in curves.items() if (value := dict(points).get(end)) is not None}
    best = best_of(last, properties)

    def line(id: str) -> AtEnd:
        if id == "live":
            return AtEnd(id, of_live, None, None, id == best)
        saving = longest_saving(live, curves[id], higher_is_better=properties.higher_is_better)
        return AtEnd(id, last.get(id), last[id] - of_live if id in last else None, saving, id == best)

    return end, [line(id) for id in curves]


def end_table(rows: list[Row], metric: str = "loss", properties: Metric = KNOWN["loss"]) -> str:
    """`at_end` as Markdown."""
    end, found = at_end(rows, metric, properties)
    if not found:
        return "no evaluation yet"
    lines = [["weights", f"val {metric}, step {end:,}", "to live", "longest saving", "at step"]]
    for line in found:
        value = "-" if line.value is None else properties.text(line.value)
        gap = "" if line.to_live is None else f"{line.to_live:+.{properties.digits}f}"
        saving = (
            [saved_text(line.saving.steps, line.saving.reached), f"{line.saving.at:,}"] if line.saving else ["", ""]
        )
        lines.append([f"{line.weights} (best)" if line.best else line.weights, value, gap, *saving])
    return with_left_out(markdown(lines), rows)


def with_left_out(table: str, rows: list[Row]) -> str:
    """The table, and what is not in it as it was evaluated otherwise."""
    said = left_out(rows)
    return f"{table}\n\n{said}" if said else table


def best_of(values: Mapping[str, float], properties: Metric = KNOWN["loss"]) -> str:
    """The weights with the best value; of equal ones the first, which live is: an average has to be better."""
    return (max if properties.higher_is_better else min)(values, key=values.__getitem__)


SAVING = (
    "longest saving: steps until the live weights have what the average has at that step; > n: not within the n left"
)


def saved_text(saved: float, reached: bool) -> str:
    """What `steps_saved` gives, as text."""
    if not reached:
        return f"> {saved:,.0f}"
    return f"{round(saved):+,}" if round(saved) else "0"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it reads well in a terminal; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rendered = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([rendered[0], rule, *rendered[1:]])
