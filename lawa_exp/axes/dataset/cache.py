"""Arrays that took time to make, kept for the next start: in LAWA_CACHE, else ~/.cache/lawa_exp."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from lawa_exp.storage.commit import file_crc32
from lawa_exp.system.files import clear, sync, temporary


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
        sync(partial)
        path = plain.with_name(_name(key, partial))
        partial.replace(path)
        sync(path.parent)
        for other in _files(key):
            if other != path:
                other.unlink(missing_ok=True)


def _folder() -> Path:
    return Path(os.environ.get("LAWA_CACHE", "~/.cache/lawa_exp")).expanduser()


def _files(key: str) -> Iterable[Path]:
    return list(_folder().glob(f"{glob.escape(key)}.*.npy"))


def _name(key: str, path: Path) -> str:
    """The name of a file with this content: it has the checksum."""
    return f"{key}.{file_crc32(path):08x}.npy"
