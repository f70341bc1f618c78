"""Arrays that took time to make, kept for the next start: in LAWA_CACHE, else ~/.cache/lawa_exp."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lawa_exp.storage.commit import file_crc32
from lawa_exp.system.files import clear, sync, temporary, turn


def load(key: str) -> np.ndarray | None:
    """The array of that key, mapped; None where this user has none. Damage is said, and the file removed."""
    for path in _files(key):
        try:
            if path.name == _name(key, path):
                content: np.ndarray = np.load(path, mmap_mode="r")
                return content
        except (FileNotFoundError, PermissionError):  # another process removed it; it is another user's
            continue
        except (OSError, ValueError, EOFError):
            pass
        print(f"warning: {path} is damaged: it is made anew", file=sys.stderr)
        with suppress(OSError):
            path.unlink()
    return None


def save(key: str, array: np.ndarray) -> None:
    """Keeps it in place of what was kept under that key; a cache that cannot be written costs time only."""
    plain = _folder() / f"{key}.npy"
    with suppress(OSError):
        plain.parent.mkdir(parents=True, exist_ok=True)
        clear(plain.parent, glob.escape(plain.name))
        partial = temporary(plain)
        with partial.open("wb") as file:
            np.save(file, array)
        _commit(key, partial)


def _commit(key: str, partial: Path) -> None:
    sync(partial)
    path = partial.with_name(_name(key, partial))
    partial.replace(path)
    sync(path.parent)
    for other in _files(key):
        if other != path:
            other.unlink(missing_ok=True)


def kept_parts(key: str, dtype: type[np.generic], parts: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """The array of that key, mapped; where there is none, the parts one after another, which are never all in memory.

    Of several processes one makes it. In a cache that cannot be written they are in memory.
    """
    if (array := load(key)) is not None:
        return array
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        with turn(_folder() / f"{key}.writing"):
            if (array := load(key)) is None:
                _save_parts(key, dtype, parts())
                array = load(key)
    except OSError:
        array = None
    return np.concatenate([np.empty(0, dtype), *parts()]) if array is None else array


def _save_parts(key: str, dtype: type[np.generic], parts: Iterable[np.ndarray]) -> None:
    plain = _folder() / f"{key}.npy"
    clear(plain.parent, glob.escape(plain.name))
    partial = temporary(plain)
    try:
        with partial.open("wb") as file:
            count = 0
            _write_head(file, dtype, count)
            for part in parts:
                count += len(part)
                part.astype(dtype, copy=False).tofile(file)
            file.seek(0)
            _write_head(file, dtype, count)
        _commit(key, partial)
    finally:
        partial.unlink(missing_ok=True)


def _write_head(file: BinaryIO, dtype: type[np.generic], count: int) -> None:
    """numpy leaves room in it for any count."""
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, described)


def _folder() -> Path:
    return Path(os.environ.get("LAWA_CACHE", "~/.cache/lawa_exp")).expanduser()


def _files(key: str) -> Iterable[Path]:
    return list(_folder().glob(f"{glob.escape(key)}.*.npy"))


def _name(key: str, path: Path) -> str:
    """The name of a file with this content: it has the checksum."""
    return f"{key}.{file_crc32(path):08x}.npy"
