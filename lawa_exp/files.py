"""Small files that have either their old content or all of the new, locks that the system frees, sizes as text."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lawa_exp.config import InUse

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_text_atomically(path: Path, text: str) -> None:
    """Replaces the file in one step, on the disk when this returns."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def size_text(amount: float) -> str:
    """`12.3 MB`, of bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB"


def sync(path: Path) -> None:
    """A file's content, or the names in a folder, are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file; InUse names the process that holds it already. It is free again however this one ends.

    what: `key=value` of the folder that is locked, for the message.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InUse(f"{what} is in use by {holder}; wait for it, or choose another folder") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield
