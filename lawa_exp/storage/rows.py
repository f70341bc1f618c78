"""Rows of metrics.jsonl: written, read, and what they are about."""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from sys import intern
from types import NoneType
from typing import Any, Required, TypedDict, cast

from lawa_exp.storage.checksums import Sum, check, known_sums, write_text
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import lines_in, open_regular, read_small


class Row(TypedDict, total=False):
    """A line of metrics.jsonl: an evaluation of some weights after a step, or a training step.

    In the file a number that is not finite is null, and its name stands in `nonfinite`. An evaluation of an average
    also has the settings of its averager by name, of which only those that several kinds share are declared.
    """

    step: Required[int]  # optimizer updates completed
    split: Required[str]  # train: a training step; val, test, zeroshot, text: an evaluation
    weights: Required[str]  # live, or the averager's id
    loss: float  # nats per target; of a training step that of its batch, before its update
    nonfinite: list[str]

    # An evaluation
    averager: str  # the kind
    k: int
    spacing: int  # steps
    every: int  # steps
    start: int  # step
    bn: str  # with which BatchNorm statistics: evaluate.bn
    view: str  # through which the weights were evaluated; absent: as they are
    loss_running_bn: float  # of the live weights, with the statistics that training left
    loss_bits: float  # bits per target, where the data set's published losses are in bits
    accuracy: float  # 0 to 1
    eval_samples: int
    trained_samples: int  # seen until this step
    trained_tokens: int
    read_samples: int  # where more are read than trained on
    passes: float  # forward and backward ones over a trained sample, where they are not one
    task: str  # of an evaluation that is no loss: its task, the metric, its value and standard error
    metric: str
    value: float
    stderr: float
    count: int  # what the value is a mean of
    source: str  # of a published value

    # A training step
    lr: float
    objective: float  # what is trained, where it is not the loss
    grad_norm: float  # before clipping
    batch_size: int  # samples
    grad_squared: float  # estimates of |G|^2 and tr(Sigma), see `results.statistics.estimates`
    grad_variance: float


class Timing(TypedDict, total=False):
    """A line of timing.jsonl: what is not deterministic, since the evaluation before."""

    step: Required[int]
    seconds: float
    tokens_per_second: float
    memory: int  # bytes, the most so far


LIVE = {"weights": "live"}  # how a row names the live weights
MOST_STARTS = 8 << 20  # bytes of their lines: some thousands of starts
TRAINED = b'"split": "train"'  # in the line of a training step, as `encode` writes it
LOSS_SPLITS = ("train", "val", "test")
FLUSH_SECONDS = 5.0  # rows are in the file after so long, and at each evaluation


def encode(row: Mapping[str, object]) -> str:
    """One JSON line; a number that is not finite becomes null and is named in `nonfinite`."""
    bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        return json.dumps({k: None if k in bad else v for k, v in row.items()} | {"nonfinite": bad}) + "\n"
    return json.dumps(row) + "\n"


class Rows:
    """An append-only JSONL file that a resumed run cuts back to where its state was saved."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        """keep_bytes: the length to cut the file back to (None: leave it as it is)."""
        path.touch()
        if keep_bytes is not None:
            if path.stat().st_size < keep_bytes:
                raise OSError(
                    f"{path} has {path.stat().st_size} bytes, less than the {keep_bytes} its state was saved with"
                )
            os.truncate(path, keep_bytes)
        self.bytes, self.crc = cut_half_line(path)
        self.file = path.open("ab")
        self.flushed = time.monotonic()

    def write(self, row: Row | Timing) -> None:
        line = encode(row).encode()
        self.file.write(line)
        self.bytes, self.crc = self.bytes + len(line), zlib.crc32(line, self.crc)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:  # for those who watch
            self.file.flush()
            self.flushed = time.monotonic()

    def flush(self) -> None:
        self.file.flush()

    def sync(self) -> Sum:
        """Everything written so far is on the disk; returns the file's length in bytes, and its CRC32."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.bytes, self.crc

    def close(self) -> None:
        self.file.close()


def read_starts(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's provenance.jsonl, one for each start, as `read_lines` reads them. UserError: too many."""
    path = run / "provenance.jsonl"
    if path.exists():
        read_small(path, MOST_STARTS)
    return read_lines(path)


def cut_half_line(path: Path) -> Sum:
    """Takes away what a kill, or a full disk, left of a last line: the next one would be glued to it.

    Returns the size and CRC32 of what stays.
    """
    size = crc = 0
    with path.open("rb") as file:
        while (line := file.readline()).endswith(b"\n"):
            size, crc = size + len(line), zlib.crc32(line, crc)
    if line:
        os.truncate(path, size)
    return size, crc


def append_line(path: Path, content: Mapping[str, object]) -> None:
    """Adds a line to a JSONL file that several starts write to, on the disk when this returns: all of it, or none."""
    path.touch()
    size, _ = cut_half_line(path)
    try:
        with path.open("ab") as file:
            file.write((json.dumps(content) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.truncate(path, size)
        raise


def each_line(path: Path, skip: bytes | None = None) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file, one after another; a last line that a kill cut short is left out.

    A missing file has none. skip: lines that have this in them are left out, unread.
    Failed names the first line that holds no JSON object, and a file that is not what was written.
    """
    sums = known_sums(path)
    if not path.exists():
        if sums:
            raise Failed(f"{path} is missing")
        return
    size = crc = 0
    with open_regular(path) as file:
        for number, line in enumerate(lines_in(file, path), 1):
            size, crc = size + len(line), zlib.crc32(line, crc)
            if skip is not None and skip in line:
                continue
            if not line.endswith(b"\n"):
                break  # the last
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                content = None
            if not isinstance(content, dict):
                raise Failed(f"{path}: line {number} is damaged; mend it or choose another run_dir")
            yield content
    if sums == known_sums(path):  # else it was written meanwhile
        check(path, sums, (size, crc))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All that `each_line` gives."""
    return list(each_line(path))


def each_row(path: Path, trained: bool = True) -> Iterator[Row]:
    """The rows of a metrics.jsonl, as `each_line` reads them; trained: those of training steps too.

    Failed also names a line that is JSON and no row.
    """
    for number, line in enumerate(each_line(path, None if trained else TRAINED), 1):
        if not is_row(line):
            raise Failed(f"{path}: row {number} is damaged (no step, split or weights, or no loss)")
        yield cast(Row, {intern(k): intern(v) if type(v) is str else v for k, v in line.items()})


def read_rows(path: Path, trained: bool = True) -> list[Row]:
    """All that `each_row` gives. Training rows are most of a file: who needs none leaves them on the disk."""
    return list(each_row(path, trained))


def is_row(line: Mapping[str, Any]) -> bool:
    """Whether it says what it is about, and an evaluation has its loss."""
    split, weights = line.get("split"), line.get("weights")
    if type(line.get("step")) is not int or type(split) is not str or type(weights) is not str:
        return False
    if split not in LOSS_SPLITS or "task" in line:
        return True
    numbers = all(type(line.get(name, 0.0)) in (float, int, NoneType) for name in ("loss", "accuracy"))
    return numbers and "loss" in line and (weights == "live" or type(line.get("averager")) is str)


def evaluation_row(step: int, split: str, *fields: Mapping[str, object]) -> Row:
    """The row of an evaluation after `step`, with all `fields` in their order; one of them names the weights."""
    row: dict[str, object] = {"step": step, "split": split}
    for more in fields:
        row |= more
    return cast(Row, row)


def add_fields(row: Row, fields: Mapping[str, float]) -> None:
    """Adds what a callback gives to a row. UserError where the row has one of that name."""
    if taken := row.keys() & fields.keys():
        raise UserError(f"a callback gives {min(taken)}, which the row of a step has already")
    row |= fields  # type: ignore[typeddict-item]


def without(row: Row, names: Collection[str]) -> Row:
    """The row but for these fields."""
    return cast(Row, {name: value for name, value in row.items() if name not in names})


def fields_in(row: Row, names: Iterable[str]) -> dict[str, float]:
    """Those of these numbers that the row has, by name."""
    values = cast("dict[str, float]", row)
    return {name: values[name] for name in names if name in values}


def metric_in(row: Row, name: str) -> float | None:
    """The value of a metric; None where the row does not have it, or it is not finite."""
    return cast("float | None", row.get(name))  # type: ignore[call-overload]


def number_in(row: Row, name: str) -> float:
    """The value of a metric that the row has; nan where it is not finite."""
    value = metric_in(row, name)
    return math.nan if value is None else value


def name_of(row: Row) -> str:
    """What a row is of, by which rows are joined: `live`, `lawa-k3-s10`; through a view `lawa-k3-s10@int8`."""
    return name_in_view(row["weights"], row.get("view"))


def name_in_view(weights: str, view: str | None) -> str:
    """`name_of` the rows of these weights, "live" or an averager's id."""
    return weights if view is None else f"{weights}@{view}"


def policy_of(rows: Iterable[Row]) -> str | None:
    """The BatchNorm statistics (`evaluate.bn`) of the last val rows: of live weights, and of most averages like those.

    None: no row says of any. The live weights have no average of statistics: `average` and `latest` are one for them.
    Where as many averagers end with the one as with the other, that of more rows counts, then the later.
    """
    told = sorted((r for r in rows if "bn" in r and r["split"] == "val"), key=lambda r: r["step"])
    live = next((r for r in reversed(told) if r["weights"] == "live"), None)
    like = [r for r in told if r["weights"] != "live" and (live is None or _alike(r["bn"], live["bn"]))]
    if not like:
        return None if live is None else live["bn"]
    ends = Counter({r["weights"]: r["bn"] for r in like}.values())
    number = Counter(r["bn"] for r in like)
    return max(like, key=lambda r: (ends[r["bn"]], number[r["bn"]], r["step"]))["bn"]


def _alike(bn: str, other: str) -> bool:
    return (bn == "recalibrate") == (other == "recalibrate")


def _fits(row: Row, bn: str) -> bool:
    if row["split"] != "val" or "bn" not in row:
        return True
    return _alike(row["bn"], bn) if row["weights"] == "live" else row["bn"] == bn


def evaluated_alike(rows: Sequence[Row], bn: str | None) -> tuple[Sequence[Row], int | None]:
    """The rows but val rows of other BatchNorm statistics than `bn`'s, and the last step of those (None: none are)."""
    if bn is None:
        return rows, None
    found = [row for row in rows if _fits(row, bn)]
    others = max((r["step"] for r in rows if not _fits(r, bn)), default=0) if len(found) < len(rows) else None
    return found, others


def left_out(rows: Sequence[Row]) -> str:
    """A line on the evaluations with other BatchNorm statistics than `policy_of` the rows; empty: there are none."""
    bn = policy_of(rows)
    others = [] if bn is None else [row for row in rows if not _fits(row, bn)]
    if not others:
        return ""
    last = {(name_of(row), row["bn"]): row["step"] for row in sorted(others, key=lambda r: r["step"])}
    whose = ", ".join(f"{name} (evaluate.bn={other}, up to step {step:,})" for (name, other), step in last.items())
    return f"left out, as evaluated with other BatchNorm statistics than most, which have evaluate.bn={bn}: {whose}"


def with_newer(rows: Iterable[Row], newer: Sequence[Row]) -> list[Row]:
    """The rows, those that are in `newer` again as they are there."""
    again = {(r["step"], r["split"], name_of(r)) for r in newer if "weights" in r}
    return [*(r for r in rows if (r["step"], r["split"], name_of(r)) not in again), *newer]


def averager_ids(rows: Iterable[Row]) -> list[str]:
    """The averagers that were evaluated, in order of appearance; rows of views add none."""
    return list(dict.fromkeys(r["weights"] for r in rows if r["weights"] != "live" and "view" not in r))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replaces the JSONL file, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(encode(row) for row in rows))
