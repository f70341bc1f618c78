"""Reads the `.wandb` file of an offline run: a LevelDB log of protocol buffers (`wandb_internal.proto`)."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

BLOCK = 32768  # bytes; a part of a record does not cross the end of a block
HEADER = struct.Struct("<IHB")  # CRC-32 of kind and content, length, kind
WHOLE, LAST = 1, 4  # kinds of parts that end a record
BEGINNING = b":W&B\xe1\xbe\x00"


def records(path: Path) -> Iterator[Any]:
    """The whole records of the file (`wandb_internal_pb2.Record`); a torn or damaged end is left out.

    ValueError: it is not such a file.
    """
    from wandb.proto import wandb_internal_pb2 as internal

    data = path.read_bytes()
    if not data.startswith(BEGINNING[:4]):
        raise ValueError(f"{path} is no W&B file")
    at, parts = len(BEGINNING), b""
    while at + HEADER.size <= len(data):
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = HEADER.unpack_from(data, at)
        part = data[at + HEADER.size : at + HEADER.size + length]
        if len(part) < length or zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            return
        at += HEADER.size + length
        parts += part
        if kind in (WHOLE, LAST):
            yield internal.Record.FromString(parts)  # type: ignore[attr-defined]  # made at run time
            parts = b""


class Item(Protocol):
    """A value in a record (`HistoryItem`, `SummaryItem`, `ConfigItem`); nested_key: empty of one on top."""

    key: str
    nested_key: Sequence[str]
    value_json: str


def nested(items: Iterable[Item]) -> dict[str, Any]:
    """{"a": {"b": 1}} from the key paths and JSON values of a record."""
    values: dict[str, Any] = {}
    for item in items:
        path = list(item.nested_key) or [item.key]
        place = values
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = json.loads(item.value_json)
    return values


class Offline:
    """What one `.wandb` file holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.run: Any = None  # the newest RunRecord
        self.metrics: list[Any] = []  # MetricRecords
        self.finished = False
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.history.append(nested(record.history.item))
            elif kind == "summary":
                self.summary |= nested(record.summary.update)
            elif kind == "config":
                self.config |= nested(record.config.update)
            elif kind == "run":
                self.run = record.run
                self.config |= nested(record.run.config.update)
            elif kind == "metric":
                self.metrics.append(record.metric)
            elif kind == "exit":
                self.finished = True


def files_of(run_dir: Path, id: str) -> list[Path]:
    """The `.wandb` files of the offline runs with this id, in order of their start."""
    return sorted(run_dir.glob(f"wandb/offline-run-*/run-{id}.wandb"))
