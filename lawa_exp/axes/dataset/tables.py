"""Rows with columns, a few at a time: JSON lines, CSV, Parquet, and the Arrow files of the package datasets."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lawa_exp.system.errors import UserError, one_line
from lawa_exp.system.files import lines_in

JSON, PARQUET, CSV = (".jsonl", ".ndjson", ".jsonl.gz", ".json.gz"), (".parquet",), (".csv", ".tsv")
ARROW = (".arrow",)
SUFFIXES = (*JSON, *PARQUET, *CSV, *ARROW)
LONGEST_FIELD = 1 << 27  # characters of CSV
ROWS, SIZE = 1_000, 8 << 20  # rows of a part, or fewer where they are longer than so many bytes or characters
SHOWN = 6  # names in a message

Table = dict[str, list[Any]]


def parts_of(path: Path, where: str, columns: Sequence[str] | None = None) -> Iterator[Table]:
    """The file's rows in order, some at a time, as lists by column. columns: those that are needed; None: all.

    where: the setting and the file, for messages. UserError: it is damaged, or has no such column.
    """
    return next(read for suffixes, read in READERS.items() if path.name.endswith(suffixes))(path, where, columns)


def columns_of(path: Path, where: str) -> dict[str, bool]:
    """The names of its columns, and whether each holds text, as far as the first rows tell."""
    first = next(parts_of(path, where), {})
    return {
        name: isinstance(next((value for value in column if value is not None), None), str)
        for name, column in first.items()
    }


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_columns(columns: Sequence[str] | None, there: Sequence[str], where: str) -> None:
    for name in columns or ():
        if name not in there:
            raise UserError(f"{where}: no column {name}; its columns are {listed(list(there)) or 'none'}")
        if list(there).count(name) > 1:
            raise UserError(f"{where}: several columns are called {name}; expected one")


def _json_lines(path: Path, where: str, columns: Sequence[str] | None) -> Iterator[Table]:
    """Columns of the first row's names. UserError names the line that is no object with them."""
    part: Table = {}
    rows = size = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        lines = lines_in(file, path)  # type: ignore[arg-type]
        names: list[str] = []
        number = 0
        while True:
            try:
                line = next(lines, None)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(f"{where} is damaged ({one_line(str(error))[:150]})") from None
            if line is None:
                break
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError
                if not names:
                    check_columns(columns, [str(name) for name in row], where)
                    names = list(columns or row)
                    part = {name: [] for name in names}
                for name, column in part.items():
                    column.append(row[name])
            except UserError:
                raise
            except (ValueError, TypeError, KeyError, RecursionError):
                expected = f"a JSON object with {listed(names)}" if names else "a JSON object"
                raise UserError(f"{where}: line {number:,} is not {expected}") from None
            rows, size = rows + 1, size + len(line)
            if rows == ROWS or size >= SIZE:
                yield part
                part, rows, size = {name: [] for name in names}, 0, 0
    if rows:
        yield part


def _csv(path: Path, where: str, columns: Sequence[str] | None) -> Iterator[Table]:
    """Columns by the names in the first line. In a .tsv `"` is a letter like others.

    UserError names the line, of a quote that does not end before a comma or the line's end that where it opens.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix == ".tsv":
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(file, strict=True)
        before = 0  # lines up to the row
        try:
            names = next(reader, [])
            check_columns(columns, names, where)
            chosen = {name: place for place, name in enumerate(names) if columns is None or name in columns}
            part: Table = {name: [] for name in chosen}
            rows = size = 0
            before = reader.line_num
            for row in reader:
                if row and len(row) != len(names):
                    expected = f"{len(names)} fields ({listed(names)})"
                    raise UserError(f"{where}: line {reader.line_num:,} has {len(row)} fields; expected {expected}")
                for name, place in chosen.items() if row else ():
                    part[name].append(row[place])
                    size += len(row[place])
                rows += bool(row)
                before = reader.line_num
                if rows == ROWS or size >= SIZE:
                    yield part
                    part, rows, size = {name: [] for name in chosen}, 0, 0
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{where}: line {before + 1:,} cannot be read as CSV ({error})") from None
    if rows:
        yield part


def _parquet(path: Path, where: str, columns: Sequence[str] | None) -> Iterator[Table]:
    _import_pyarrow(where)
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(str(path)) as file:
            check_columns(columns, file.schema_arrow.names, where)
            for batch in file.iter_batches(ROWS, columns=list(columns) if columns else None):
                yield batch.to_pydict()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read as Parquet ({one_line(str(error))[:150]})") from None


def _arrow(path: Path, where: str, columns: Sequence[str] | None) -> Iterator[Table]:
    """A stream of Arrow, mapped: what the package datasets keeps."""
    _import_pyarrow(where)
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
            check_columns(columns, stream.schema.names, where)
            for batch in stream:
                chosen = batch.select(list(columns)) if columns else batch
                for start in range(0, len(chosen), ROWS):
                    yield chosen.slice(start, ROWS).to_pydict()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read as Arrow ({one_line(str(error))[:150]})") from None


def _import_pyarrow(where: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError(f"{where} needs the package pyarrow: pip install 'lawa_exp[prepare]'") from None


READERS: dict[tuple[str, ...], Callable[[Path, str, Sequence[str] | None], Iterator[Table]]] = {
    JSON: _json_lines,
    CSV: _csv,
    PARQUET: _parquet,
    ARROW: _arrow,
}
