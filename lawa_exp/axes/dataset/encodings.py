"""Which encoding a file has, from its content: read as another it would train on something else."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lawa_exp.axes.dataset.tables import JSON
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import LARGEST, read_small

HEADS = {  # how files begin that are neither tokens nor text
    b"\x1f\x8b": "gzip (unpack it first)",
    b"BZh": "bzip2 (unpack it first)",
    b"\xfd7zXZ\0": "xz (unpack it first)",
    b"\x28\xb5\x2f\xfd": "Zstandard (unpack it first)",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet (give the column of the text with dataset.column=NAME)",
    b"ARROW1": "Arrow",
    b"\x93NUMPY": "a NumPy array with a header (write it with tofile)",
    b"%PDF": "PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF": "HDF5",
    b"SQLite format": "SQLite",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04\x95": "a pickle",
    b"\x80\x05\x95": "a pickle",
    (20240520).to_bytes(4, "little"): "llm.c's (strip its header of 1,024 bytes)",
    (20240801).to_bytes(4, "little"): "llm.c's (strip its header of 1,024 bytes)",
    b"MMIDIDX\0": "Megatron's index",
}
FEWEST = 16  # tokens from which on the width can be told
LINES = 3  # that are looked at
META = 64 << 20  # bytes of a meta.pkl at most
WIDTHS = ("uint16", "uint32", "int32", "int64")


def kind_of(head: bytes) -> str | None:
    """What a file that begins so is; None: it may be tokens or text."""
    return next((kind for begin, kind in HEADS.items() if head.startswith(begin)), None)


def other_tokens(data: bytes, dtype: str, vocab_size: int) -> str | None:
    """Why these bytes, a file's first, are no tokens of that type; None: they may be."""
    if kind := kind_of(data[:16]):
        return f"is {kind}"
    printable = set(b"\t\n\r" + bytes(range(32, 127)))
    if len(data) >= 4 * FEWEST and set(data) <= printable:
        return "is text or single bytes (dataset=text dataset.path=FILE reads it)"
    size = np.dtype(dtype).itemsize
    halves = np.frombuffer(data[: len(data) // 8 * 8], "<u2").reshape(-1, 4)
    if size == 2 and len(halves) * 4 >= FEWEST and halves[:, 0].any():
        if not halves[:, 1:].any():
            return "looks like int64 (three of four uint16 are 0): give dataset.dtype=int64"
        if not halves[:, 1::2].any():
            return "looks like uint32 (every second uint16 is 0): give dataset.dtype=uint32"
        if (halves[:, 1::2] <= 3).all() and halves[:, ::2].max() > 255:
            return "looks like uint32 (every second uint16 is at most 3): give dataset.dtype=uint32"
    tokens = np.frombuffer(data[: len(data) // size * size], dtype)
    if len(tokens) >= FEWEST and tokens.max() >= vocab_size and (swapped := tokens.byteswap()).max() < vocab_size:
        return f"looks big-endian (its bytes swapped, no token is over {swapped.max()}): write it little-endian"
    return None


def text_of(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. UserError says what it is instead."""
    content = read_small(path, LARGEST)
    where = f"dataset.path={path}: not UTF-8 text"
    if kind := kind_of(content[:16]):
        if path.name.endswith(JSON) and path.suffix == ".gz":
            kind = "gzip of rows (give the column of the text with dataset.column=NAME)"
        raise UserError(f"{where}: it is {kind}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{where}: it is UTF-16 or UTF-32; convert it, iconv -f UTF-16 -t UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} (byte {error.start}); convert it, such as iconv -f LATIN1 -t UTF-8, or it is no text"
        ) from None
    if "\0" in text:
        raise UserError(f"{where}: it holds NUL (byte {content.index(0)}), as UTF-16 and binary files do")
    return text


def markup_of(path: Path, text: str) -> str | None:
    """What a text is made of where it is data in another form, whose syntax would be trained on; None: it is a text."""
    lines = [line for line in text[: 1 << 20].split("\n", LINES + 1)[:LINES] if line.strip()]
    if (len(lines) > 1 and all(_is_object(line) for line in lines)) or path.suffix in (".jsonl", ".ndjson"):
        return "JSON lines"
    if path.suffix == ".json" or _is_object(text[: 1 << 20]):
        return "JSON"
    if path.suffix in (".csv", ".tsv"):
        return "a table"
    if re.match(r"\s*<(!doctype html|html|\?xml)", text[:200], re.I) or path.suffix in (".html", ".htm", ".xml"):
        return "HTML or XML"
    return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def vocabulary_in(folder: Path) -> int | None:
    """The vocabulary that meta.json (ours) or meta.pkl (nanoGPT's) of a folder of tokens names; None: neither is there.

    UserError: it is damaged. A pickle is read without calling anything.
    """
    readers: dict[str, Callable[[bytes], Any]] = {"meta.json": json.loads, "meta.pkl": plain_pickle}
    for name, read in readers.items():
        path = folder / name
        if not path.is_file():
            continue
        try:
            return int(read(read_small(path, META))["vocab_size"])
        except Exception:  # whatever a damaged pickle raises
            raise UserError(f"{path} is damaged: expected a mapping with vocab_size") from None
    return None


def plain_pickle(content: bytes) -> object:
    """What a pickle of plain data holds. UnpicklingError: it asks for anything else; nothing is called."""
    import io

    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    return Plain(io.BytesIO(content)).load()
