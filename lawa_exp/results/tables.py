"""Tables of losses and of steps saved."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lawa_exp.results.statistics import curve, steps_saved
from lawa_exp.seams.task import Metric
from lawa_exp.storage.metrics import KNOWN
from lawa_exp.storage.rows import Row, averager_ids, left_out

NATS = "nats per token"  # of images: nats per image
TABLE_STEPS = 5  # steps shown in the table
WIDE = 4  # averages up to which each has its columns; more have a line each


def loss_table(rows: list[Row]) -> str:
    """Val loss of the live weights and of each average at a few steps, and the steps saved, as Markdown."""
    live = curve(rows, "live")
    ids = averager_ids(rows)
    if len(ids) > WIDE:
        return readout_table(rows)
    steps = [s for s, _ in live if s > 0]
    if not steps:
        return "no evaluation yet"
    shown = sorted({steps[math.ceil(len(steps) * (i + 1) / TABLE_STEPS) - 1] for i in range(TABLE_STEPS)})
    lines = [["step", "live", *(head for id in ids for head in (id, "steps saved"))]]
    for step in shown:
        line = [f"{step:,}", f"{dict(live)[step]:.4f}"]
        for id in ids:
            value = dict(curve(rows, id)).get(step)
            line += ["-", "-"] if value is None else [f"{value:.4f}", format_saved(live, step, value)]
        lines.append(line)
    return with_left_out(markdown(lines), rows)


def with_left_out(table: str, rows: list[Row]) -> str:
    """The table, and what is not in it as it was evaluated otherwise."""
    said = left_out(rows)
    return f"{table}\n\n{said}" if said else table


def readout_table(rows: list[Row], metric: str = "loss", properties: Metric = KNOWN["loss"]) -> str:
    """A line for each average: its last and its best val loss (or other metric), and the most steps that it saves."""
    sign = -1 if properties.higher_is_better else 1  # of the two the lower is the better

    def points_of(id: str) -> list[tuple[int, float]]:
        return [(s, sign * v) for s, v in curve(rows, id, metric=metric)]

    live = points_of("live")
    lines = [
        ["weights", f"{metric} at step {live[-1][0]:,}", f"best {metric}", "at step", "most steps saved", "at step"]
    ]
    for id in ["live", *averager_ids(rows)]:
        points = points_of(id)
        if not points:
            continue
        best_step, best = min(points, key=lambda point: point[1])
        last = dict(points).get(live[-1][0])
        line = [
            id,
            properties.text(sign * last) if last is not None else "-",
            properties.text(sign * best),
            f"{best_step:,}",
        ]
        at = max((steps_saved(live, s, v)[0], s) for s, v in points)[1]
        saved = ["", ""] if id == "live" else [format_saved(live, at, dict(points)[at]), f"{at:,}"]
        lines.append([*line, *saved])
    return with_left_out(markdown(lines), rows)


def format_saved(live: Sequence[tuple[int, float]], step: int, value: float) -> str:
    """`+120`: the live weights need 120 steps more; `> 300`: they do not get there within the run."""
    return saved_text(*steps_saved(live, step, value))


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
