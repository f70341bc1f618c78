"""Rows of metrics.jsonl: written, read, and what they are about."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lawa_exp.system.errors import Failed
from lawa_exp.system.files import write_text_atomically

FLUSH_SECONDS = 5.0  # rows are in the file after so long, and at each evaluation


def encode(row: dict[str, Any]) -> str:
    """One JSON line; a number that is not finite becomes null and is named in `nonfinite`."""
    bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        row = {k: None if k in bad else v for k, v in row.items()} | {"nonfinite": bad}
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
        self.file = path.open("ab")
        self.flushed = time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(encode(row).encode())
        if time.monotonic() - self.flushed > FLUSH_SECONDS:  # for those who watch
            self.file.flush()
            self.flushed = time.monotonic()

    def flush(self) -> None:
        self.file.flush()

    def sync(self) -> int:
        """Everything written so far is on the disk; returns the file's length in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line that a kill cut short is left out. A missing file has no rows.

    Failed names the first line that is no JSON.
    """
    if not path.exists():
        return []
    text = path.read_text(errors="replace")
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise Failed(f"{path}: line {number} is damaged; mend it or choose another run_dir") from None
    return rows


def with_newer(rows: Iterable[dict[str, Any]], newer: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, those that are in `newer` again as they are there."""
    again = {(r["step"], r["split"], r["weights"]) for r in newer if "weights" in r}
    return [*(r for r in rows if (r["step"], r["split"], r["weights"]) not in again), *newer]


def averager_ids(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The averagers that were evaluated, in order of appearance."""
    return list(dict.fromkeys(r["weights"] for r in rows if r["weights"] != "live"))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replaces the JSONL file, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, "".join(encode(row) for row in rows))
