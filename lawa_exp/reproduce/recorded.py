"""The curves of a reproduction in one compressed table, from which anyone can judge its claims without training.

A line of JSON for each run: its sets, settings, and the evaluations of every weights as columns. Numbers are written
with all their digits, so that a claim judged from the table has the values, to the last bit, that the runs give.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lawa_exp.reproduce.arms import Missing, Run
from lawa_exp.storage.metrics import metrics_in, written_metrics
from lawa_exp.storage.rows import Row, name_of
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import write_atomically

FILE = "curves.jsonl.gz"
# Of rows and of runs, what no rule and no plot of losses asks:
LEFT_OUT = ("trained_samples", "trained_tokens", "eval_samples")
UNUSED = ("identity", "averagers", "metrics", "trajectory", "save", "logger", "loggers")
Columns = Mapping[str, Any]  # a part, see `in_columns`


def in_columns(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A part for each weights: what all of its rows have in common, and lists of what differs (null: not there)."""
    by_weights: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_weights.setdefault((row["split"], name_of(row)), []).append(row)
    parts = []
    for own in by_weights.values():
        names = dict.fromkeys(name for row in own for name in row if name not in LEFT_OUT)
        columns = {name: [row.get(name) for row in own] for name in names}
        differing = {name: values for name, values in columns.items() if name == "step" or len({*map(str, values)}) > 1}
        same = {name: values[0] for name, values in columns.items() if name not in differing}
        parts.append({"same": same, "each": differing})
    return parts


def in_rows(parts: Sequence[Columns]) -> list[Row]:
    """The rows again, by step."""
    rows: list[dict[str, Any]] = []
    for part in parts:
        names = list(part["each"])
        for values in zip(*part["each"].values(), strict=True):
            own = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            row = {**part["same"], **own}
            rows.append(dict.fromkeys(row.get("nonfinite", ())) | row)  # whose null is a value
    return cast(list[Row], sorted(rows, key=lambda row: row["step"]))


def written(run: Run, sets: Sequence[str]) -> dict[str, Any]:
    return {
        "run": run.folder.name,
        "sets": list(sets),
        "steps": run.steps,
        "seed": run.seed,
        "config": {key: value for key, value in run.config.items() if key.partition(".")[0] not in UNUSED},
        **written_metrics(run.metrics),
        "val": in_columns(run.rows),
        "test": in_columns(run.test),
        "readouts": {name: in_columns(rows) for name, rows in run.readouts.items()},
    }


def record(path: Path, runs: Mapping[str, Sequence[Run]], facts: Sequence[str]) -> int:
    """Writes the runs of these sets, and those of other sets that the table has; returns how many it holds now.

    facts: on the machine and the costs, for the pages. Equal runs give equal bytes.
    """
    kept: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in lines_of(path)[1:]:
            line["sets"] = [name for name in line["sets"] if name not in runs]
            if line["sets"]:
                kept[line["run"]] = line
    for name, of_set in runs.items():
        for run in of_set:
            earlier = kept[run.folder.name]["sets"] if run.folder.name in kept else []
            kept[run.folder.name] = written(run, [*earlier, name])
    lines = [{"facts": list(facts)}, *(kept[name] for name in sorted(kept))]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as file:
        file.write(text.encode())
    write_atomically(path, packed.getvalue())
    return len(kept)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """UserError: there is no such table, or it is damaged."""
    if not path.is_file():
        raise UserError(f"--recompute={path}: no such file; expected {FILE}, which a reproduction writes")
    try:
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"--recompute={path}: not a table of curves ({error})") from None


def recorded(path: Path) -> tuple[Callable[[str], list[Run]], list[str]]:
    """The runs of a set by its name (it raises Missing where the table has none), and the facts."""
    runs: dict[str, list[Run]] = {}
    lines = lines_of(path)
    try:
        facts = list(lines[0]["facts"])
        for line in lines[1:]:
            run = Run(
                Path(line["run"]),
                line["steps"],
                line["seed"],
                line["config"],
                in_rows(line["val"]),
                in_rows(line["test"]),
                {name: in_rows(parts) for name, parts in line["readouts"].items()},
                metrics_in(line),
            )
            for name in line["sets"]:
                runs.setdefault(name, []).append(run)
    except (LookupError, ValueError, TypeError, AttributeError):
        raise UserError(f"--recompute={path}: not a table of curves, as a reproduction writes") from None

    def of(name: str) -> list[Run]:
        if name not in runs:
            raise Missing(f"{path.name} has no run of {name}")
        return runs[name]

    return of, facts
