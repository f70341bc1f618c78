"""What an item of the page shows, a run or the mean over seeds: cells, curves, heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from lawa_exp.evaluation.read_out import ReadOut
from lawa_exp.readout.comparison import Comparison, compare, plus_minus
from lawa_exp.readout.heatmap import compared_at, differences, grids, saved_cells
from lawa_exp.readout.report import noise_line
from lawa_exp.results.statistics import curve
from lawa_exp.results.tables import saved_text
from lawa_exp.storage.metrics import KNOWN, Metrics, shown_metrics
from lawa_exp.storage.rows import Row, averager_ids, is_row, metric_in, read_lines
from lawa_exp.system.errors import Failed, UserError

POINTS = 400  # of a curve; of more, every second, third, ... and the last

Rows = list[Row]
Cell = tuple[float | str | None, str]  # what a column is sorted by (None: last), and the text


def comparison_of(rows: Rows, own: Metrics) -> Comparison | None:
    """What a read-out of these averages says, without what needs the losses of single batches; None: nothing yet."""
    live = [step for step, _ in curve(rows, "live") if step > 0]
    try:
        return compare(ReadOut([], max(live), {}), rows, averager_ids(rows), metrics=own) if live else None
    except Failed:
        return None


def drawn(f: Comparison | None, rows: Rows, own: Metrics) -> dict[str, object]:
    """Curves by weights, a line for each average, heat maps."""
    ids, names = ["live", *averager_ids(rows)], ["loss", *shown_metrics({**KNOWN, **own})]
    curves = {id: {m: thinned(curve(rows, id, metric=m)) for m in names} for id in ids}
    shown: dict[str, object] = {"curves": {id: {m: c for m, c in of.items() if c} for id, of in curves.items()}}
    if f is None:
        return {**shown, "lines": [], "maps": []}
    lines = [
        {
            "weights": line.id,
            "best": line.id == f.best,
            "texts": [
                f"{line.loss:.4f}",
                f"{line.difference:+.4f}{plus_minus(line.half)}",
                saved_text(*line.saved),
                line.saved_range,
                f"{line.at:,}",
                *(text for name, metric in f.metrics.items() for text in line.others[name].texts(metric)),
            ],
        }
        for line in f.lines
    ]
    return {**shown, "step": f.step, "lines": lines, "noise": noise_line(f), "maps": heat_maps(f, rows)}


def thinned(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    every = math.ceil(len(points) / POINTS) or 1
    return [[s, float(f"{v:.6g}")] for i, (s, v) in enumerate(points) if i % every == 0 or i == len(points) - 1]


def heat_maps(f: Comparison, rows: Rows) -> list[dict[str, object]]:
    """k against spacing, as in a read-out's heatmap.png."""
    step = compared_at(f, rows) or f.step
    gaps = {"gap": differences(f, rows, step), **{name: differences(f, rows, step, name) for name in f.metrics}}
    maps: list[dict[str, object]] = []
    for name, lines in grids(f).items():
        first, saved = saved_cells(lines)
        cells = [
            {
                "k": line.fields["k"],
                "spacing": line.fields["spacing"],
                "weights": line.id,
                "best": line.id == f.best,
                **{key: vars(of[line.id]) for key, of in {"saved": saved, **gaps}.items() if line.id in of},
            }
            for line in lines
        ]
        less = {metric: f"val {metric} less live, step {step:,}" for metric in f.metrics}
        said = {"saved": f"steps saved, from step {first:,}", "gap": f"val loss less live, step {step:,}", **less}
        maps.append({"name": name, "said": said, "cells": cells})
    return maps


def compared(f: Comparison | None, rows: Rows, own: Metrics) -> list[Cell]:
    """The live weights at the last evaluation, the best average there, and what it gains; the tasks' own metrics of
    both."""
    live = curve(rows, "live")
    if f is None:
        others = [cell for name in own for cell in (last_of(rows, "live", name, own), (None, ""))]
        return [(live[-1][1], f"{live[-1][1]:.4f}") if live else (None, ""), *[(None, "")] * 4, *others]
    best = next(line for line in f.lines if line.id == f.lowest)
    return [
        (f.live, f"{f.live:.4f}"),
        (best.id, best.id),
        (best.loss, f"{best.loss:.4f}"),
        (best.difference, f"{best.difference:+.4f}{plus_minus(best.half)}"),
        (best.saved[0], f"{saved_text(*best.saved)} at {best.at:,}"),
        *(last_of(rows, weights, name, own) for name in own for weights in ("live", best.id)),
    ]


def last_of(rows: Rows, weights: str, name: str, metrics: Metrics) -> Cell:
    """A metric at the last evaluation that has it."""
    points = curve(rows, weights, metric=name)
    return (points[-1][1], metrics[name].text(points[-1][1])) if points else (None, "")


def test_rows(run: Path, problems: list[str] | None = None) -> Rows:
    path = run / "readouts" / "test" / "metrics.jsonl"
    rows = undamaged(path, problems)
    return cast(Rows, rows if all(map(is_row, rows)) else [])


def undamaged(
    path: Path, problems: list[str] | None = None, read: Callable[[Path], list[dict[str, Any]]] = read_lines
) -> list[dict[str, Any]]:
    """The lines of a JSONL file; none of a damaged one, so that it does not hide the other files.

    problems: what is wrong with it is added there.
    """
    try:
        return read(path)
    except (Failed, UserError, OSError) as error:
        if problems is not None:
            problems.append(str(error))
        return []


def sortable(text: str) -> Cell:
    try:
        return float(text), text
    except ValueError:
        return text, text


def text_in(row: Row, name: str, metrics: Metrics) -> str:
    value = metric_in(row, name)
    return "" if value is None else metrics[name].text(value)
