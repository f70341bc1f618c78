"""Rows with columns: JSON lines, CSV and Parquet; the column of texts or images, and of their classes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lawa_exp.axes.dataset.tables import CSV, JSON, PARQUET, Table, listed, parts_of
from lawa_exp.convert.recognise.recognised import IMAGES, TEXTS
from lawa_exp.convert.validation.content import Content, Documents, Pictures, Place, TokenArray, files_in
from lawa_exp.system.errors import UserError

TEXT, LABEL, IMAGE = ("text", "content", "sentence"), ("label", "labels", "class"), ("image", "img")  # usual names
TOKENS, MASK = "input_ids", "attention_mask"

Names = Mapping[str, Sequence[str]]  # of the classes in a column, by their number


def content(place: Place) -> Content | None:
    """UserError: the file is damaged, or which column is meant is not clear."""
    files = files_in(place, (*JSON, *PARQUET, *CSV))
    if not files:
        return None
    tables: list[Table] = []
    classes: Names = {}
    for path in files:
        tables.append(_whole(path))
        if path.name.endswith(PARQUET):
            classes = _named_classes(path)
    whole = {name: [value for each in tables for value in each.get(name, ())] for name in tables[0]}
    shards = f" and its {len(files)} shards" if len(files) > 1 else ""
    return of_columns(Place(files[0], place.columns, place.predicts), whole, f"{files[0]}{shards}", classes)


def of_columns(place: Place, table: Mapping[str, Sequence[Any]], where: str, classes: Names | None = None) -> Content:
    """What the columns of a table hold. where: file and split, for the note; classes: names, where it has them.

    UserError: it is not clear which is meant.
    """
    rows = len(next(iter(table.values()), ()))
    if not rows:
        raise UserError(f"{place}: it has no rows")
    for name in place.columns:
        if name not in table:
            raise UserError(f"{place}: no column {name}; its columns are {listed(list(table))}")
    strings = [name for name, column in table.items() if isinstance(column[0], str)]
    images = [name for name, column in table.items() if _is_image(column[0])]
    if place.columns[0] in images if place.columns else images and place.predicts in (IMAGES, None):
        return _pictures(place, table, images, where, classes or {})
    if TOKENS in table and not place.columns and place.predicts is not TEXTS:
        return _tokens(place, table, where)
    text = place.columns[0] if place.columns else _one(place, strings, TEXT, "texts")
    if text not in strings:
        raise UserError(f"{place}: column {text} holds no text; columns of text: {listed(strings) or 'none'}")
    texts = table[text]
    wrong = next((i for i, value in enumerate(texts) if not isinstance(value, str)), None)
    if wrong is not None:
        raise UserError(f"{place}: row {wrong + 1:,} has no text in column {text}")
    if place.predicts is not TEXTS:
        return Documents(texts, None, f"{where}, column {text}, {rows:,} rows")
    label = _label(place, table, text)
    note = f"{where}, columns {text} and {label}, {rows:,} rows"
    return Documents(texts, table[label], note, (classes or {}).get(label))


def _tokens(place: Place, table: Mapping[str, Sequence[Any]], where: str) -> TokenArray:
    import numpy as np

    each = [np.asarray(row, np.int64) for row in table[TOKENS]]
    said = ""
    if MASK in table:
        shown = [np.asarray(row, bool) for row in table[MASK]]
        if [len(row) for row in shown] != [len(row) for row in each]:
            raise UserError(f"{place}: columns {TOKENS} and {MASK} have rows of other lengths")
        padding = sum(int((~row).sum()) for row in shown)
        each = [row[seen] for row, seen in zip(each, shown, strict=True)]
        said = f", without {padding:,} tokens of padding ({MASK})" if padding else ""
    return TokenArray(np.concatenate(each), None, f"{where}, column {TOKENS}, {len(each):,} rows{said}")


def _pictures(
    place: Place, table: Mapping[str, Sequence[Any]], images: Sequence[str], where: str, classes: Names
) -> Pictures:
    """Images as they lie in the table, or the files that it names."""
    name = place.columns[0] if place.columns else _one(place, images, IMAGE, "images")
    label = _label(place, table, name)
    made: list[Path | bytes] = []
    for number, value in enumerate(table[name], 1):
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(content, bytes):
            made.append(content)
        elif isinstance(path, str) and Path(path).is_file():
            made.append(Path(path))
        else:
            missing = f"no file {path}" if path else "no image"
            raise UserError(f"{place}: row {number:,} has {missing} in column {name}")
    note = f"{where}, columns {name} and {label}, {len(made):,} images"
    return Pictures(made, table[label], classes.get(label), note)


def _is_image(value: object) -> bool:
    """As `datasets` stores one, or what its file holds."""
    return isinstance(value, bytes) or (isinstance(value, dict) and value.keys() == {"bytes", "path"})


def _label(place: Place, table: Mapping[str, Sequence[Any]], other: str) -> str:
    if len(place.columns) > 1:
        return place.columns[1]
    return _one(place, [n for n, column in table.items() if n != other and type(column[0]) in (int, str)], LABEL)


def _one(place: Place, names: Sequence[str], usual: Sequence[str], what: str = "classes") -> str:
    chosen = next((name for name in usual if name in names), names[0] if len(names) == 1 else None)
    if chosen is None:
        columns = "TEXT,LABEL" if place.predicts is TEXTS else "IMAGE,LABEL" if place.predicts is IMAGES else "COLUMN"
        raise UserError(
            f"{place}: which column holds the {what} is not clear ({listed(names) or 'none can'}); "
            f"--data {place.path}:{columns}"
        )
    return chosen


def _whole(path: Path) -> Table:
    """All rows of a file; of CSV numbers where all of a column are."""
    table: Table = {}
    for part in parts_of(path, f"--data={path}"):
        for name, column in part.items():
            table.setdefault(name, []).extend(column)
    if not path.name.endswith(CSV):
        return table
    is_number = {n: all(re.fullmatch(r"-?\d{1,18}", value) for value in column) for n, column in table.items()}
    return {n: [int(value) for value in column] if is_number[n] else column for n, column in table.items()}


def _named_classes(path: Path) -> Names:
    """The names of classes that `datasets` has written into a Parquet file."""
    import pyarrow.parquet

    try:
        features = json.loads((pyarrow.parquet.read_schema(str(path)).metadata or {})[b"huggingface"])["info"][
            "features"
        ]
        return {n: f["names"] for n, f in features.items() if isinstance(f, dict) and "names" in f}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
