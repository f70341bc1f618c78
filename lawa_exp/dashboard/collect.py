"""What the page shows, as plain data. Its numbers are those of the read-outs and summaries, by the same functions."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, cast
from urllib.parse import quote

from lawa_exp.axes.dataset import DATASETS
from lawa_exp.config.rules import flat
from lawa_exp.evaluation.read_out import ReadOut
from lawa_exp.readout.comparison import Comparison, Line, compare, plus_minus, range_of_saved
from lawa_exp.readout.heatmap import compared_at, differences, grids
from lawa_exp.readout.of_run import RESERVED
from lawa_exp.readout.report import noise_line
from lawa_exp.results.figures import DRAWN
from lawa_exp.results.statistics import curve, mean_and_deviation, paired_difference
from lawa_exp.results.summary import Group, with_spread
from lawa_exp.results.tables import saved_text
from lawa_exp.status.runs import list_runs
from lawa_exp.status.standing import STATES, Standing, duration, standings
from lawa_exp.storage import manifest
from lawa_exp.storage.rows import Row, averager_ids, evaluation_row, name_of, read_lines, read_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import Failed, UserError

POINTS = 400  # of a curve; of more, every second, third, ... and the last
SETTINGS = 8  # columns of what runs differ in
LINKED = ("report.md", "curves.png", "config.yaml", "metrics.jsonl")
COMPARED = ("val loss, live", "best average", "its val loss", "to live", "steps saved")  # columns, see `compared`
FIELDS = ("averager", "k", "spacing", "start", "every")  # of a row, that tell what its average is

Rows = list[Row]
Cell = tuple[float | str | None, str]  # what a column is sorted by (None: last), and the text


class Content(TypedDict):
    """What page.js shows. unit: of the losses; shown: the averagers whose curves are on."""

    title: str
    command: str
    written: str
    problems: list[str]
    states: list[str]
    unit: str
    averagers: list[dict[str, str]]
    shown: list[str]
    columns: dict[str, list[str]]
    runs: list[dict[str, object]]
    groups: list[dict[str, object]]


def collect(sweep: Path, out: Path, now: float) -> Content:
    """The page's content. out: the page, from whose folder the links go."""
    found, problem = standings(list_runs(sweep), now)
    problems = [problem] if problem else []
    configs, rows = {}, {}
    for s in found:
        try:
            configs[s.run.path] = RunDir(s.run.path).read_config() or {}
            rows[s.run.path] = val_rows(s.run.path)
        except (Failed, UserError, OSError) as error:
            problems.append(str(error))
            configs.setdefault(s.run.path, {})
            rows.setdefault(s.run.path, [])
    identities = {path: config.get("identity", {}) for path, config in configs.items()}
    units = {path: unit_of(config["dataset"]["kind"]) for path, config in configs.items() if config}
    keys, values = settings_of(found, identities)
    comparisons = {path: comparison_of(mine) for path, mine in rows.items()}
    runs = [
        run_item(s, mine, rows[s.run.path], comparisons[s.run.path], units.get(s.run.path), out)
        for s, mine in zip(found, values, strict=True)
    ]
    groups = [group_item(members, found, values, keys, rows) for members in seed_groups(found, identities, rows)]
    every_row = [row for mine in rows.values() for row in mine]
    every_unit = set(units.values())
    return {
        "title": sweep.resolve().name,
        "command": command_of(sweep),
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)),
        "problems": problems,
        "states": [state for state in STATES if any(s.state == state for s in found)],
        "unit": f"nats per {every_unit.pop()}" if len(every_unit) == 1 else "nats per token or image",
        "averagers": averagers(every_row),
        "shown": shown_at_first(averager_ids(every_row), comparisons.values()),
        "columns": {
            "runs": ["run", "state", "note", *keys, "step", *COMPARED, "throughput", "time left", "restarts"],
            "groups": ["seeds", *(k for k in keys if k != "seed"), "step", *COMPARED],
        },
        "runs": runs,
        "groups": groups,
    }


def command_of(sweep: Path) -> str:
    return manifest.read(sweep)["command"] if (sweep / manifest.NAME).is_file() else ""


def unit_of(kind: str) -> str:
    """What a loss on a data set of this kind is the mean over."""
    return "image" if kind in DATASETS and DATASETS[kind].inputs == "images" else "token"


def val_rows(run: Path) -> Rows:
    """The run's val rows, and those that were read out later of averages (or at steps) that it has none of.

    Left out is what was evaluated through a view, or with other BatchNorm statistics than the live weights of its step.
    """
    found: dict[tuple[int, str], Row] = {}
    files = [run / "metrics.jsonl", *sorted(run.glob("readouts/*/metrics.jsonl"))]
    for file in files:
        if file.parent.name not in RESERVED:
            for row in read_rows(file):
                if row.get("split") == "val" and "task" not in row and "view" not in row:
                    live = found.get((row["step"], "live"), row)
                    if live.get("bn") == row.get("bn"):
                        found.setdefault((row["step"], row["weights"]), row)
    return sorted(found.values(), key=lambda row: row["step"])


def test_rows(run: Path) -> Rows:
    return cast(Rows, undamaged(run / "readouts" / "test" / "metrics.jsonl"))


def undamaged(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file; none of a damaged one, so that it does not hide the other files."""
    try:
        return read_lines(path)
    except Failed:
        return []


def settings_of(
    runs: Sequence[Standing], identities: Mapping[Path, dict[str, object]]
) -> tuple[list[str], list[list[str]]]:
    """The settings that tell the runs apart, and their values for each: a sweep's overrides, else their identities'."""
    overrides = [dict(o.lstrip("+").partition("=")[::2] for o in s.run.overrides) for s in runs]
    keys = list(dict.fromkeys(key for own in overrides for key in own))
    if not keys:
        overrides = [{k: str(v) for k, v in flat(identities[s.run.path]).items()} for s in runs]
        settled = [own for own in overrides if own]
        shared = [k for k in settled[0] if all(k in own for own in settled)] if settled else []
        keys = [k for k in shared if len({own[k] for own in settled}) > 1 and k != "dataset.fingerprint"][:SETTINGS]
    return keys, [[own.get(key, "") for key in keys] for own in overrides]


def averagers(rows: Iterable[Row]) -> list[dict[str, str]]:
    """The averagers of all runs, of each its id and kind; of a kind in the order of their settings."""
    kinds = {r["weights"]: (r["averager"], r.get("k", 0), r.get("spacing", 0)) for r in rows if r["weights"] != "live"}
    return [{"id": id, "kind": kind[0]} for id, kind in sorted(kinds.items(), key=lambda entry: (entry[1], entry[0]))]


def shown_at_first(ids: list[str], comparisons: Iterable[Comparison | None]) -> list[str]:
    """The averagers whose curves are on: all, or of more than `DRAWN` of each kind the one that is best most often."""
    if len(ids) <= DRAWN:
        return ids
    often: dict[str, Counter[str]] = {}
    for f in filter(None, comparisons):
        best: dict[str, Line] = {}
        for line in sorted(f.lines, key=lambda line: line.loss):
            best.setdefault(line.fields["averager"], line)
        for kind, line in best.items():
            often.setdefault(kind, Counter())[line.id] += 1
    return [counted.most_common(1)[0][0] for counted in often.values()]


def comparison_of(rows: Rows) -> Comparison | None:
    """What a read-out of these averages says, without what needs the losses of single batches; None: nothing yet."""
    live = [step for step, _ in curve(rows, "live") if step > 0]
    try:
        return compare(ReadOut([], max(live), {}), rows, averager_ids(rows)) if live else None
    except Failed:
        return None


def drawn(f: Comparison | None, rows: Rows) -> dict[str, object]:
    """Curves by weights, a line for each average, heat maps."""
    ids = ["live", *averager_ids(rows)]
    curves = {id: {m: thinned(curve(rows, id, metric=m)) for m in ("loss", "accuracy")} for id in ids}
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
    gaps = differences(f, rows, step)
    maps: list[dict[str, object]] = []
    for name, lines in grids(f).items():
        first = min(line.at for line in lines)
        cells = []
        for line in lines:
            gap, below, unclear = gaps[line.id]
            later = f" from {line.at:,}" if line.at > first else ""
            saved = {"value": line.saved[0], "text": saved_text(*line.saved) + later, "below": line.saved_range}
            cells.append(
                {
                    "k": line.fields["k"],
                    "spacing": line.fields["spacing"],
                    "weights": line.id,
                    "best": line.id == f.best,
                    "saved": {**saved, "unclear": line.saved_unclear},
                    "gap": {"value": gap, "text": f"{gap:+.4f}", "below": below, "unclear": unclear},
                }
            )
        said = {"saved": f"steps saved, from step {first:,}", "gap": f"val loss less live, step {step:,}"}
        maps.append({"name": name, "said": said, "cells": cells})
    return maps


def run_item(
    s: Standing, settings: list[str], rows: Rows, f: Comparison | None, loss_unit: str | None, out: Path
) -> dict[str, object]:
    """A run: its cells in the table's order, its curves and maps, its files. loss_unit: None where it is not known."""
    path = s.run.path
    step = f"{s.step or 0:,}" + (f" of {s.steps:,}" if s.steps else "")
    speed, unit = s.tokens_per_second, s.unit
    if speed is None and loss_unit:
        timed = [r for r in undamaged(path / "timing.jsonl") if r.get("tokens_per_second")]
        speed, unit = (timed[-1]["tokens_per_second"] if timed else None), loss_unit
    cells: list[Cell] = [
        (path.name, path.name),
        (STATES.index(s.state), s.state),
        (s.note, s.note),
        *(sortable(value) for value in settings),
        (s.step or 0, step),
        *compared(f, rows),
        (speed, f"{speed:,.0f} {unit}s/s") if speed else (None, ""),
        (s.seconds_left, duration(s.seconds_left)) if s.seconds_left is not None else (None, ""),
        (s.restarts, str(s.restarts or "")),
    ]
    there = [path / name for name in LINKED if (path / name).is_file()]
    there += [p for name in ("summary.md", "heatmap.png") for p in sorted(path.glob(f"readouts/*/{name}"))]
    test = [[name_of(r), f"{r['loss']:.4f}"] for r in test_rows(path) if r.get("loss") is not None and r["step"]]
    return {
        "name": " ".join(s.run.overrides) or path.name,
        "state": s.state,
        "note": s.note,
        "done": min((s.step or 0) / s.steps, 1) if s.steps else None,
        "link": link(path, out) + "/" if path.is_dir() else "",
        "files": [[str(p.relative_to(path)), link(p, out)] for p in there],
        "starts": starts(path),
        "test": test,
        "cells": cells,
        **drawn(f, rows),
    }


def compared(f: Comparison | None, rows: Rows) -> list[Cell]:
    """The live weights at the last evaluation, the best average there, and what it gains."""
    live = curve(rows, "live")
    if f is None:
        return [(live[-1][1], f"{live[-1][1]:.4f}") if live else (None, ""), *[(None, "")] * 4]
    best = next(line for line in f.lines if line.id == f.best)
    return [
        (f.live, f"{f.live:.4f}"),
        (best.id, best.id),
        (best.loss, f"{best.loss:.4f}"),
        (best.difference, f"{best.difference:+.4f}{plus_minus(best.half)}"),
        (best.saved[0], f"{saved_text(*best.saved)} at {best.at:,}"),
    ]


def starts(run: Path) -> list[str]:
    """When, where and from which commit each start was, in words."""
    said = []
    for line in undamaged(run / "provenance.jsonl"):
        git = line.get("git") or {}
        commit = f", commit {git['commit'][:10]}{' with changes' if git.get('dirty') else ''}" if git else ""
        said.append(f"{line['time']} on {line['hardware']['node']}, {line.get('ranks', 1)} rank(s){commit}")
    return said


def link(path: Path, out: Path) -> str:
    return quote(os.path.relpath(path.resolve(), out.resolve().parent))


def sortable(text: str) -> Cell:
    try:
        return float(text), text
    except ValueError:
        return text, text


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
    members: list[int], runs: Sequence[Standing], values: list[list[str]], keys: list[str], rows: dict[Path, Rows]
) -> dict[str, object]:
    """The mean over the seeds, as an item of the table."""
    of_members = [rows[runs[i].run.path] for i in members]
    settings = [value for key, value in zip(keys, values[members[0]], strict=True) if key != "seed"]
    said = [f"{k}={v}" for k, v in zip((k for k in keys if k != "seed"), settings, strict=True)]
    name = " ".join(said) or "all runs"
    group = Group(name, of_members, [test_rows(runs[i].run.path) for i in members])
    of = {r["weights"]: {k: v for k, v in r.items() if k in FIELDS} for r in of_members[0]}
    mean = [
        evaluation_row(step, "val", {"weights": weights, "loss": loss}, of[weights])
        for weights in ("live", *group.ids())
        for step, loss in group.mean_curve(weights)
    ]
    f = with_seeds(comparison_of(mean), group)
    cells: list[Cell] = [
        (len(members), str(len(members))),
        *(sortable(value) for value in settings),
        (group.step, f"{group.step:,}"),
        *compared(f, mean),
    ]
    for i, weights in ((-5, "live"), (-3, f.best if f else "")):  # the losses, with their spread
        if (losses := group.final(weights)) is not None:
            cells[i] = cells[i][0], with_spread("{:.4f}", *mean_and_deviation(losses))
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
        "test": [[w, with_spread("{:.4f}", *mean_and_deviation(v))] for w, v in tested(group)],
        **drawn(f, mean),
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
        lines.append(replace(line, half=half, saved_range=saved_range, saved_unclear=unclear))
    return replace(f, lines=lines)


def tested(group: Group) -> list[tuple[str, list[float]]]:
    found = [(weights, group.final(weights, "test")) for weights in ("live", *group.ids())]
    return [(weights, values) for weights, values in found if values is not None]
