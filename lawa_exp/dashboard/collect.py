"""What the page shows, as plain data. Its numbers are those of the read-outs and summaries, by the same functions."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict
from urllib.parse import quote

from lawa_exp.axes.dataset import DATASETS
from lawa_exp.config.rules import flat
from lawa_exp.dashboard.groups import group_item, seed_groups
from lawa_exp.dashboard.items import Cell, Rows, compared, comparison_of, drawn, sortable, test_rows, text_in, undamaged
from lawa_exp.readout.comparison import Comparison, Line
from lawa_exp.readout.of_run import RESERVED
from lawa_exp.results.curves import DRAWN
from lawa_exp.results.statistics import Indexed
from lawa_exp.results.tables import NATS
from lawa_exp.seams.task import Metric
from lawa_exp.status.runs import list_runs
from lawa_exp.status.standing import STATES, Standing, duration, standings
from lawa_exp.storage import manifest
from lawa_exp.storage.metrics import KEY, Metrics, metrics_in, own_metrics, together
from lawa_exp.storage.rows import Row, averager_ids, each_row, name_of, read_starts
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import Failed, UserError

SETTINGS = 8  # columns of what runs differ in
LINKED = ("report.md", "curves.png", "config.yaml", "metrics.jsonl")
COMPARED = ("val loss, live", "best average", "its val loss", "to live", "steps saved")  # columns, see `compared`


class Content(TypedDict):
    """What page.js shows. unit: of the losses; shown: the averagers whose curves are on.

    metrics: those that tasks add, by name: how an axis calls them, whether higher is better, digits.
    """

    title: str
    command: str
    written: str
    problems: list[str]
    states: list[str]
    unit: str
    averagers: list[dict[str, str]]
    shown: list[str]
    columns: dict[str, list[str]]
    settings: list[str]
    runs: list[dict[str, object]]
    groups: list[dict[str, object]]
    metrics: NotRequired[dict[str, dict[str, object]]]


def collect(sweep: Path, out: Path, now: float) -> Content:
    """The page's content. out: the page, from whose folder the links go."""
    found, problem = standings(list_runs(sweep), now)
    problems = [problem] if problem else []
    problems += [f"{s.run.path.name}: {s.note}" for s in found if s.state == "damaged"]
    configs, rows, metrics = {}, {}, {}
    for s in found:
        try:
            configs[s.run.path] = RunDir(s.run.path).read_config() or {}
            if configs[s.run.path]:
                unit_of(configs[s.run.path])  # KeyError: another thing than a run's
            rows[s.run.path], metrics[s.run.path] = val_rows(s.run.path), metrics_in(configs[s.run.path])
        except (Failed, UserError, OSError) as error:
            problems.append(str(error))
            configs.setdefault(s.run.path, {})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            problems.append(f"{s.run.path / 'config.yaml'} is damaged ({type(error).__name__}: {error})")
            configs[s.run.path] = {}
        if s.run.path not in rows:
            rows[s.run.path] = Indexed([])
    identities = {path: config.get("identity", {}) for path, config in configs.items()}
    units = {path: unit_of(config) for path, config in configs.items() if config}
    own = own_metrics(together(metrics.values()))
    keys, values = settings_of(found, identities)
    comparisons = {path: comparison_of(mine, own) for path, mine in rows.items()}
    runs = [
        run_item(s, mine, rows[s.run.path], comparisons[s.run.path], units.get(s.run.path), out, own, problems)
        for s, mine in zip(found, values, strict=True)
    ]
    groups = [group_item(members, found, values, keys, rows, own) for members in seed_groups(found, identities, rows)]
    compared_by = [*COMPARED, *(head for name in own for head in (f"val {name}, live", f"its val {name}"))]
    every_row = [row for mine in rows.values() for row in mine]
    every_unit = set(units.values())
    content: Content = {
        "title": sweep.resolve().name,
        "command": command_of(sweep),
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)),
        "problems": list(dict.fromkeys(problems)),
        "states": [state for state in STATES if any(s.state == state for s in found)],
        "unit": every_unit.pop() if len(every_unit) == 1 else "nats per token or image",
        "averagers": averagers(every_row),
        "shown": shown_at_first(averager_ids(every_row), comparisons.values()),
        "columns": {
            "runs": ["run", "state", "note", *keys, "step", *compared_by, "throughput", "time left", "restarts"],
            "groups": ["seeds", *(k for k in keys if k != "seed"), "step", *compared_by],
        },
        "settings": keys,
        "runs": runs,
        "groups": groups,
    }
    if own:
        content["metrics"] = {name: as_data(name, metric) for name, metric in own.items()}
    return content


def as_data(name: str, metric: Metric) -> dict[str, object]:
    """What the page must know of a metric."""
    label = f"validation {name}" + ("" if metric.is_share else f" ({metric.unit})")
    return {"label": label, "higher_is_better": metric.higher_is_better, "digits": metric.digits}


def command_of(sweep: Path) -> str:
    return manifest.read(sweep)["command"] if (sweep / manifest.NAME).is_file() else ""


def unit_of(config: Mapping[str, Any]) -> str:
    """Of the losses of a run, from its config.yaml."""
    kind = config["dataset"]["kind"]
    if KEY in config:
        return metrics_in(config)["loss"].unit
    return "nats per image" if kind in DATASETS and DATASETS[kind].inputs == "images" else NATS


def val_rows(run: Path) -> Rows:
    """The run's val rows, and those that were read out later of averages (or at steps) that it has none of.

    Left out is what was evaluated through a view, or with other BatchNorm statistics than the live weights of its step.
    """
    found: dict[tuple[int, str], Row] = {}
    files = [run / "metrics.jsonl", *sorted(run.glob("readouts/*/metrics.jsonl"))]
    for file in files:
        if file.parent.name not in RESERVED:
            for row in each_row(file, trained=False):
                if row["split"] == "val" and "task" not in row and "view" not in row:
                    live = found.get((row["step"], "live"), row)
                    if live.get("bn") == row.get("bn"):
                        found.setdefault((row["step"], row["weights"]), row)
    return Indexed(sorted(found.values(), key=lambda row: row["step"]))


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


def run_item(
    s: Standing,
    settings: list[str],
    rows: Rows,
    f: Comparison | None,
    loss_unit: str | None,
    out: Path,
    own: Metrics,
    problems: list[str],
) -> dict[str, object]:
    """A run: its cells in the table's order, its curves and maps, its files. loss_unit: None where it is not known."""
    path = s.run.path
    step = f"{s.step or 0:,}" + (f" of {s.steps:,}" if s.steps else "")
    speed, unit = s.tokens_per_second, s.unit
    if speed is None and loss_unit:
        timed = [r for r in undamaged(path / "timing.jsonl", problems) if r.get("tokens_per_second")]
        speed, unit = (timed[-1]["tokens_per_second"] if timed else None), loss_unit.split()[-1]
    cells: list[Cell] = [
        (path.name, path.name),
        (STATES.index(s.state), s.state),
        (s.note, s.note),
        *(sortable(value) for value in settings),
        (s.step or 0, step),
        *compared(f, rows, own),
        (speed, f"{speed:,.0f} {unit}s/s") if speed else (None, ""),
        (s.seconds_left, duration(s.seconds_left)) if s.seconds_left is not None else (None, ""),
        (s.restarts, str(s.restarts or "")),
    ]
    there = [path / name for name in LINKED if (path / name).is_file()]
    there += [p for name in ("summary.md", "heatmap.png") for p in sorted(path.glob(f"readouts/*/{name}"))]
    of_test = [r for r in test_rows(path, problems) if r.get("loss") is not None and r["step"]]
    test = [[name_of(r), f"{r['loss']:.4f}", *(text_in(r, name, own) for name in own)] for r in of_test]
    return {
        "name": " ".join(s.run.overrides) or path.name,
        "state": s.state,
        "note": s.note,
        "done": min((s.step or 0) / s.steps, 1) if s.steps else None,
        "link": link(path, out) + "/" if path.is_dir() else "",
        "files": [[str(p.relative_to(path)), link(p, out)] for p in there],
        "starts": starts(path, problems),
        "test": test,
        "cells": cells,
        **drawn(f, rows, own),
    }


def starts(run: Path, problems: list[str]) -> list[str]:
    """When, where and from which commit each start was, in words."""
    said = []
    for number, line in enumerate(undamaged(run, problems, read_starts), 1):
        try:
            git = line.get("git") or {}
            commit = f", commit {git['commit'][:10]}{' with changes' if git.get('dirty') else ''}" if git else ""
            said.append(f"{line['time']} on {line['hardware']['node']}, {line.get('ranks', 1)} rank(s){commit}")
        except (KeyError, TypeError, AttributeError):
            problems.append(f"{run / 'provenance.jsonl'}: line {number} is damaged")
    return said


def link(path: Path, out: Path) -> str:
    return quote(os.path.relpath(path.resolve(), out.resolve().parent))
