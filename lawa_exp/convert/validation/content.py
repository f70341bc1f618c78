"""What DATA holds, whatever it is stored as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from lawa_exp.axes.dataset.tables import listed
from lawa_exp.system.errors import UserError

SPLITS = (("val", "valid", "validation", "dev", "eval"), ("test", "testing"))  # that weights are judged on, in order
SHARD = re.compile(r"-\d+-of-\d+")


@dataclass(frozen=True)
class TokenArray:
    """Tokens as numbers, integers [tokens]. vocab_size: where a meta file says it. note: which split, read as what."""

    tokens: np.ndarray
    vocab_size: int | None
    note: str


@dataclass(frozen=True)
class Documents:
    """Texts, and where there is a column for them their classes, as numbers or names.

    names: of the classes by their number, where the data have them. is_rows: whether each is an example of its own,
    not a long text.
    """

    texts: Sequence[str]
    labels: Sequence[int | str] | None
    note: str
    names: Sequence[str] | None = None
    is_rows: bool = True


@dataclass(frozen=True)
class Pictures:
    """Images, as files or as what files of them hold, and their classes.

    names: of the classes by their number, where the data have them.
    """

    images: Sequence[Path | bytes]
    labels: Sequence[int | str]
    names: Sequence[str] | None
    note: str


Content: TypeAlias = TokenArray | Documents | Pictures


@dataclass(frozen=True)
class Place:
    """DATA as it was written: FILE, FOLDER, FILE:COLUMN or FILE:TEXT,LABEL. predicts: as `Recognised` has it."""

    path: Path
    columns: tuple[str, ...] = ()
    predicts: str | None = None

    def __str__(self) -> str:
        return f"--data={self.path}" + (f":{','.join(self.columns)}" if self.columns else "")


def place_of(text: str, predicts: str | None) -> Place:
    """UserError: nothing is there."""
    path = Path(text).expanduser()
    if path.exists():
        return Place(path, (), predicts)
    before, colon, columns = text.rpartition(":")
    if colon and Path(before).expanduser().exists():
        return Place(Path(before).expanduser(), tuple(c.strip() for c in columns.split(",")), predicts)
    raise UserError(f"--data={text}: no such file or folder")


def split_in(names: Sequence[str]) -> list[str]:
    """The names (of files, folders or splits) that say that they are val, else test; empty: none does."""
    for words in SPLITS:
        pattern = re.compile(rf"({'|'.join(words)})(\d*[-_.].*)?", re.IGNORECASE)
        if matches := sorted(name for name in names if pattern.fullmatch(name)):
            return matches
    return []


def files_in(place: Place, suffixes: Sequence[str]) -> list[Path]:
    """The file that is evaluated on: of a folder its val file, else test, else the only one; empty: it has none.

    Several are the shards of one (`validation-00000-of-00002.parquet`). UserError: which file is meant is not clear.
    """
    path = place.path
    if path.is_file():
        return [path] if path.name.endswith(tuple(suffixes)) else []
    files = {p.name: p for p in sorted(path.iterdir()) if p.is_file() and p.name.endswith(tuple(suffixes))}
    names = [name for name in files if not name.startswith(".")]
    chosen = split_in(names) or names
    if len({SHARD.sub("", name) for name in chosen}) > 1:
        why = "several files" if chosen != names else "several files, and none is called val or test"
        raise UserError(f"{place}: {why}: {listed(chosen)}; give one of them")
    return [files[name] for name in chosen]


def sole_file(place: Place, suffixes: Sequence[str]) -> Path | None:
    """`files_in` of a kind that has no shards."""
    files = files_in(place, suffixes)
    if len(files) > 1:
        raise UserError(f"{place}: several files: {listed([p.name for p in files])}; give one of them")
    return files[0] if files else None
