"""From the rows of metrics.jsonl and timing.jsonl to what loggers get, without losing a value on the way.

One row for each step that has rows; its keys:
    step                                 the axis of every metric
    train/FIELD                          the training row
    val/WEIGHTS/FIELD                    an evaluation row, by the averager's id (or live); of a view val/WEIGHTS@VIEW
    val/trained_tokens, ...              what the evaluation rows of a step have in common
    best/KIND/loss, best/KIND/accuracy   by the averager's kind: of several of a kind the best at that step; so are the
                                         other metrics of a task
    timing/FIELD                         the timing row; where a resumed run did a step again, the first
What says which averager a row is of (its kind, k, spacing) stands once in the run's configuration, `averages`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from lawa_exp.averaging import AVERAGERS
from lawa_exp.config.rules import setting_names
from lawa_exp.results.statistics import curve, steps_saved
from lawa_exp.storage.metrics import KNOWN, Metrics, metrics_of, own_metrics, shown_metrics
from lawa_exp.storage.rows import Row, Timing, averager_ids, metric_in, name_of
from lawa_exp.system.files import open_regular

COMMON = (
    "eval_samples",
    "trained_samples",
    "trained_tokens",
    "read_samples",
    "passes",
)  # the same for all evaluations of a step
PLACE = ("step", "split", "weights", "view", "nonfinite")  # what the key says


Line = TypeVar("Line", Row, Timing)
Payload = dict[str, Any]  # what a logger gets for a step


def values(row: Row | Timing) -> Payload:
    """The row's fields; a null that stands for a number that is not finite is NaN again."""
    bad = cast(Row, row).get("nonfinite") or ()
    return {k: math.nan if k in bad else v for k, v in row.items() if k not in PLACE}


def payload(rows: list[Row], timing: Timing | None, metrics: Metrics = KNOWN) -> Payload:
    """What a logger gets for one step: its rows of metrics.jsonl, all of them, and its row of timing.jsonl."""
    sent: Payload = {"step": rows[0]["step"] if rows else timing["step"] if timing else 0}
    for row in rows:
        fields = values(row)
        if row["split"] == "train":
            sent |= {f"train/{k}": v for k, v in fields.items()}
            continue
        said = description(row)
        for field, value in fields.items():
            if field not in said:
                sent[f"{row['split']}/{field}" if field in COMMON else f"{row['split']}/{name_of(row)}/{field}"] = value
        if "averager" in row and "view" not in row:
            for metric in compared(metrics):
                better = max if metrics[metric].higher_is_better else min
                key, value = f"best/{row['averager']}/{metric}", fields.get(metric)
                if value is not None and not math.isnan(value):
                    sent[key] = better(value, sent.get(key, value))
    if timing:
        sent |= {f"timing/{k}": v for k, v in values(timing).items()}
    return sent


def compared(metrics: Metrics) -> list[str]:
    """The metrics that have keys of their best values: the loss, in one unit, and the others."""
    return ["loss", *shown_metrics(metrics)]


def description(row: Row) -> dict[str, object]:
    """Of an evaluation row what says which averager it is of: its kind and its settings; empty for live weights."""
    if "averager" not in row:
        return {}
    settings = AVERAGERS.get(row["averager"])
    names = {"averager", *(setting_names(settings) if settings else ())}
    return {k: v for k, v in row.items() if k in names}


class Lines(Generic[Line]):
    """The lines of a growing JSONL file, each once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read = 0  # bytes

    def new(self) -> list[Line]:
        """The whole lines since the last call; none while there is no such file."""
        if not self.path.exists():
            return []
        with open_regular(self.path) as file:
            file.seek(self.read)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self.read += len(text)
        return [json.loads(line) for line in text.splitlines()]


class Steps:
    """The steps of a run in their order, each with all of its rows, as its files grow."""

    def __init__(self, metrics: Path, timing: Path) -> None:
        self.folder = metrics.parent  # of the run
        self.metrics: Lines[Row] = Lines(metrics)
        self.timing: Lines[Timing] = Lines(timing)
        self.waiting: dict[int, list[Row]] = {}
        self.times: dict[int, Timing] = {}
        self.count = 0
        self.averages: dict[str, dict[str, object]] = {}  # by id: their `description`

    def new(self, whole: bool) -> Iterator[tuple[int, Payload]]:
        """(step, payload) of the steps that are complete by now: those before the newest, all of them if `whole`."""
        for row in self.metrics.new():
            self.waiting.setdefault(row["step"], []).append(row)
            if said := description(row):
                self.averages.setdefault(row["weights"], said)
        for line in self.timing.new():  # read after the metrics: a step's are written before the next step's metrics
            self.times.setdefault(line["step"], line)
        newest, told = max(self.waiting, default=0), metrics_of(self.folder)
        for step in sorted(self.waiting):
            if whole or step < newest:
                self.count += 1
                yield step, payload(self.waiting.pop(step), self.times.get(step), told)


TABLE = ("weights", "averager", "last loss", "best loss", "at step", "test loss", "most steps saved", "reached", "from")


def columns(metrics: Metrics) -> list[str | int]:
    """Of the final table."""
    return [*TABLE, *(f"{when} {name}" for name in own_metrics(metrics) for when in ("last", "test"))]


def final(rows: list[Row], test: list[Row], metrics: Metrics = KNOWN) -> tuple[list[list[Any]], Payload]:
    """The lines of the final table (see `columns`), and the run's summary.

    rows: of metrics.jsonl; test: those of the last step on the test split. Most steps saved: the largest number of
    steps that the live weights of this run need more than an average; not reached: it is more than that number.
    """
    live = curve(rows, "live")
    tested = {name_of(r): r for r in test}
    kinds = {r["weights"]: r["averager"] for r in rows if "averager" in r}
    lines: list[list[Any]] = []
    summary: Payload = {}
    for id in ["live", *averager_ids(rows)]:
        points = curve(rows, id)
        if not points:
            continue
        best, at = min((v, s) for s, v in points)
        line = [id, kinds.get(id, "live"), points[-1][1], best, at, tested[id]["loss"] if id in tested else None]
        own: list[float | None] = []
        for name in own_metrics(metrics):
            last = curve(rows, id, metric=name)
            own += [last[-1][1] if last else None, metric_in(tested[id], name) if id in tested else None]
        if id == "live":
            lines.append([*line, None, None, None, *own])
        else:
            saved, step, reached = max((n, s, r) for s, v in points for n, r in [steps_saved(live, s, v)])
            lines.append([*line, saved, reached, step, *own])
            kind = f"steps_saved/{kinds[id]}"
            summary |= {f"steps_saved/{id}": saved, kind: max(saved, summary.get(kind, saved))}
        for metric in compared(metrics):
            if id in tested and (value := metric_in(tested[id], metric)) is not None:
                summary[f"test/{id}/{metric}"] = value
    return lines, summary
