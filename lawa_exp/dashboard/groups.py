"""The means over the seeds, as items of the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lawa_exp.dashboard.items import Cell, Rows, compared, comparison_of, drawn, sortable, test_rows
from lawa_exp.readout.comparison import Comparison, range_of_saved
from lawa_exp.results.statistics import Indexed, curve, paired_difference
from lawa_exp.results.summary import Group, with_deviation
from lawa_exp.seams.task import Metric
from lawa_exp.status.standing import Standing
from lawa_exp.storage.metrics import KNOWN, Metrics
from lawa_exp.storage.rows import evaluation_row, name_of

FIELDS = ("averager", "k", "spacing", "start", "every")  # of a row, that tell what its average is


def seed_groups(
    runs: Sequence[Standing], identities: Mapping[Path, dict[str, object]], rows: dict[Path, Rows]
) -> list[list[int]]:
    """The runs that were evaluated and differ only in the seed."""
    groups: dict[str, list[int]] = {}
    for i, s in enumerate(runs):
        identity = {k: v for k, v in identities[s.run.path].items() if k != "seed"}
        if identity and any(step > 0 for step, _ in curve(rows[s.run.path], "live")):
            groups.setdefault(json.dumps(identity, sort_keys=True) + str(s.steps), []).append(i)
    return list(groups.values())


def group_item(
    members: list[int],
    runs: Sequence[Standing],
    values: list[list[str]],
    keys: list[str],
    rows: dict[Path, Rows],
    own: Metrics,
) -> dict[str, object]:
    """The mean over the seeds, as an item of the table."""
    of_members = [rows[runs[i].run.path] for i in members]
    settings = [value for key, value in zip(keys, values[members[0]], strict=True) if key != "seed"]
    said = [f"{k}={v}" for k, v in zip((k for k in keys if k != "seed"), settings, strict=True)]
    name = " ".join(said) or "all runs"
    group = Group(name, of_members, [test_rows(runs[i].run.path) for i in members])
    of = {name_of(r): {k: v for k, v in r.items() if k in FIELDS} for r in of_members[0]}
    mean = Indexed(
        evaluation_row(step, "val", {"weights": weights, "loss": loss}, of[weights], others.get(step, {}))
        for weights in ("live", *group.ids())
        for others in [others_of(group, weights, own)]
        for step, loss in group.mean_curve(weights)
    )
    f = with_seeds(comparison_of(mean, own), group)
    cells: list[Cell] = [
        (len(members), str(len(members))),
        *(sortable(value) for value in settings),
        (group.step, f"{group.step:,}"),
    ]
    first = len(cells)
    cells += compared(f, mean, own)
    best = f.lowest if f else ""
    spread = {first: ("live", "loss"), first + 2: (best, "loss")}  # what has one: the losses, and other metrics
    for i, metric in enumerate(own):
        spread |= {first + 5 + 2 * i: ("live", metric), first + 6 + 2 * i: (best, metric)}
    for i, (weights, metric) in spread.items():
        if (of_seeds := group.final(weights, metric=metric)) is not None:
            cells[i] = cells[i][0], spread_text(of_seeds, own.get(metric, KNOWN["loss"]))
    return {
        "name": name,
        "state": "",
        "note": "",
        "done": None,
        "link": "",
        "files": [],
        "starts": [],
        "cells": cells,
    } | {
        "test": tested(group, own),
        **drawn(f, mean, own),
        "noise": "Of the mean over the seeds. ±: half of the 95% interval of the difference, paired by seed; behind a "
        "loss in the table the standard deviation.",
    }


def with_seeds(f: Comparison | None, group: Group) -> Comparison | None:
    """The comparison on the mean curves, with what seeds differ by in place of the noise of one run."""
    live = group.final("live")
    if f is None or live is None:
        return f
    lines, curve_of_live = [], group.mean_curve("live")
    for line in f.lines:
        values = group.final(line.id)
        half = paired_difference(values, live)[1] if values is not None else math.nan
        saved_range, unclear = range_of_saved(curve_of_live, line.at, dict(group.mean_curve(line.id))[line.at], half)
        others = {name: replace(of, half=half_over_seeds(group, line.id, name)) for name, of in line.others.items()}
        lines.append(replace(line, half=half, saved_range=saved_range, saved_unclear=unclear, others=others))
    return replace(f, lines=lines)


def half_over_seeds(group: Group, weights: str, metric: str) -> float:
    """Of the interval of the difference to live at the end; nan where it is not known."""
    values, live = group.final(weights, metric=metric), group.final("live", metric=metric)
    return math.nan if values is None or live is None else paired_difference(values, live)[1]


def others_of(group: Group, weights: str, own: Metrics) -> dict[int, dict[str, float]]:
    """The means of the tasks' own metrics over the seeds by step, where all have them."""
    found: dict[int, dict[str, float]] = {}
    for name in own:
        for step, value in group.mean_curve(weights, name):
            found.setdefault(step, {})[name] = value
    return found


def spread_text(values: list[float], metric: Metric) -> str:
    return with_deviation(values, metric.digits)


def tested(group: Group, own: Metrics) -> list[list[str]]:
    """A line for each of the weights that all seeds have tested: their loss, and the tasks' own metrics."""
    lines = []
    for weights in ("live", *group.ids()):
        values = {name: group.final(weights, "test", name) for name in ("loss", *own)}
        if values["loss"] is not None:
            told = {name: own.get(name, KNOWN["loss"]) for name in values}
            lines.append([weights, *(spread_text(v, told[n]) if v is not None else "" for n, v in values.items())])
    return lines
