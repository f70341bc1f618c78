"""What DATA holds, whatever it is stored as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from lawa_exp.system.errors import UserError

SPLITS = (("val", "valid", "validation", "dev", "eval"), ("test", "testing"))  # that weights are judged on, in order
SHOWN = 6  # names in a message


@dataclass(frozen=True)
class TokenArray:
    """Tokens as numbers, integers [tokens]. vocab_size: where a meta file says it. note: which split, read as what."""

    tokens: np.ndarray
    vocab_size: int | None
    note: str


@dataclass(frozen=True)
class Documents:
    """Texts, and where there is a column for them their classes, as numbers or names."""

    texts: Sequence[str]
    labels: Sequence[int | str] | None
    note: str


@dataclass(frozen=True)
class Pictures:
    """Files of images; labels: int64 [images], places in `classes`, the names of the folders in their order."""

    paths: Sequence[Path]
    labels: np.ndarray
    classes: Sequence[str]
    note: str


Content: TypeAlias = TokenArray | Documents | Pictures


@dataclass(frozen=True)
class Place:
    """DATA as it was written: FILE, FOLDER, FILE:COLUMN or FILE:TEXT,LABEL. labelled: whether classes are needed."""

    path: Path
    columns: tuple[str, ...] = ()
    labelled: bool = False

    def __str__(self) -> str:
        return f"--data={self.path}" + (f":{','.join(self.columns)}" if self.columns else "")


def place_of(text: str, labelled: bool) -> Place:
    """UserError: nothing is there."""
    path = Path(text).expanduser()
    if path.exists():
        return Place(path, (), labelled)
    before, colon, columns = text.rpartition(":")
    if colon and Path(before).expanduser().exists():
        return Place(Path(before).expanduser(), tuple(c.strip() for c in columns.split(",")), labelled)
    raise UserError(f"--data={text}: no such file or folder")


def split_in(names: Sequence[str]) -> str | None:
    """The first of the names (of files, folders or splits) that says it is val, else test; None: none does."""
    for words in SPLITS:
        for word in words:
            for name in sorted(names):
                if re.fullmatch(rf"{word}(\d*[-_.].*)?", name, re.IGNORECASE):
                    return name
    return None


def sole_file(place: Place, suffixes: Sequence[str]) -> Path | None:
    """The file that is evaluated on: of a folder its val file, else test, else the only one; None: it has none.

    UserError: it has several, and none says that it is val or test.
    """
    path = place.path
    if path.is_file():
        return path if path.name.endswith(tuple(suffixes)) else None
    files = {p.name: p for p in sorted(path.iterdir()) if p.is_file() and p.name.endswith(tuple(suffixes))}
    files = {name: p for name, p in files.items() if not name.startswith(".")}
    if not files:
        return None
    chosen = split_in(list(files)) or (next(iter(files)) if len(files) == 1 else None)
    if chosen is None:
        raise UserError(
            f"{place}: several files, and none is called val or test: {listed(list(files))}; give one of them"
        )
    return files[chosen]


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
