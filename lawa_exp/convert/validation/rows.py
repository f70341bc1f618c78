"""Rows with columns: JSON lines and Parquet, one file; the column of texts, and of classes where they are needed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lawa_exp.convert.validation.content import Content, Documents, Place, TokenArray, files_in, listed
from lawa_exp.system.errors import UserError

JSON, PARQUET = (".jsonl", ".ndjson", ".jsonl.gz"), (".parquet",)
TEXT, LABEL, TOKENS = ("text", "content", "sentence"), ("label", "labels", "class"), "input_ids"  # usual names
MASK = "attention_mask"


def content(place: Place) -> Content | None:
    """UserError: the file is damaged, or which column is meant is not clear."""
    files = files_in(place, (*JSON, *PARQUET))
    if not files:
        return None
    tables = [_parquet(path) if path.name.endswith(PARQUET) else _json_lines(path) for path in files]
    table = {name: [value for each in tables for value in each.get(name, ())] for name in tables[0]}
    shards = f" and its {len(files)} shards" if len(files) > 1 else ""
    return of_columns(Place(files[0], place.columns, place.labelled), table, f"{files[0]}{shards}")


def of_columns(place: Place, table: Mapping[str, Sequence[Any]], where: str) -> Content:
    """What the columns of a table hold. where: file and split, for the note. UserError: it is not clear which."""
    rows = len(next(iter(table.values()), ()))
    if not rows:
        raise UserError(f"{place}: it has no rows")
    for name in place.columns:
        if name not in table:
            raise UserError(f"{place}: no column {name}; its columns are {listed(list(table))}")
    if TOKENS in table and not place.columns and not place.labelled:
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
        return TokenArray(np.concatenate(each), None, f"{where}, column {TOKENS}, {rows:,} rows{said}")
    strings = [name for name, column in table.items() if isinstance(column[0], str)]
    text = place.columns[0] if place.columns else _one(place, strings, TEXT, "texts")
    if text not in strings:
        raise UserError(f"{place}: column {text} holds no text; columns of text: {listed(strings) or 'none'}")
    texts = table[text]
    wrong = next((i for i, value in enumerate(texts) if not isinstance(value, str)), None)
    if wrong is not None:
        raise UserError(f"{place}: row {wrong + 1:,} has no text in column {text}")
    if not place.labelled:
        return Documents(texts, None, f"{where}, column {text}, {rows:,} rows")
    others = [n for n, column in table.items() if n != text and type(column[0]) in (int, str)]
    label = place.columns[1] if len(place.columns) > 1 else _one(place, others, LABEL, "classes")
    return Documents(texts, table[label], f"{where}, columns {text} and {label}, {rows:,} rows")


def _one(place: Place, names: Sequence[str], usual: Sequence[str], what: str) -> str:
    chosen = next((name for name in usual if name in names), names[0] if len(names) == 1 else None)
    if chosen is None:
        example = f"--data {place.path}:COLUMN" if what == "texts" else f"--data {place.path}:TEXT,LABEL"
        raise UserError(
            f"{place}: which column holds the {what} is not clear ({listed(names) or 'none can'}); {example}"
        )
    return chosen


def _json_lines(path: Path) -> dict[str, list[Any]]:
    """Columns of the first row's names. UserError names the line that is no object with them."""
    table: dict[str, list[Any]] = {}
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                table = table or {str(name): [] for name in row}
                for name, column in table.items():
                    column.append(row[name])
            except (ValueError, TypeError, KeyError):
                expected = f"a JSON object with {listed(list(table))}" if table else "a JSON object"
                raise UserError(f"--data={path}: line {number:,} is not {expected}") from None
    return table


def _parquet(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"--data={path} needs the package pyarrow: pip install 'lawa_exp[prepare]'") from None
    try:
        table: dict[str, list[Any]] = pyarrow.parquet.read_table(str(path)).to_pydict()
    except Exception as error:  # of pyarrow
        raise UserError(f"--data={path} cannot be read as Parquet ({str(error).splitlines()[0][:150]})") from None
    return table
