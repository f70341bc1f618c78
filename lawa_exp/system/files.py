"""Small files that have either their old content or all of the new, locks that the system frees, sizes as text."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lawa_exp.system.errors import Failed, InUse

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL = ".partial-"  # begins the name of what is being written, until it is whole
PROCESS = re.compile(r"(\d{1,7})@([^@]*)@")  # goes on so, where no lock says whose it is: process and machine
ABANDONED = 86_400  # seconds without a change, after which another machine's is a leftover: containers change names
LOCK = ".lock"  # of the whole folder that it is in
TURN = ".writing"  # see `in_turn`
LOCKED: list[Path] = []  # such folders, whose locks this process holds


def temporary(target: Path, prefix: str = PARTIAL) -> Path:
    """The name under which `target` is written; no two processes have the same.

    It is plain under a folder that this process has locked: what is left there is the next one's to clear.
    """
    parent = target.parent.absolute()
    alone = any(parent.is_relative_to(folder) for folder in LOCKED)
    return target.with_name(prefix + ("" if alone else f"{os.getpid()}@{platform.node()}@") + target.name)


def written_by(path: Path, prefix: str = PARTIAL) -> tuple[str, bool | None]:
    """The target's name in a temporary one, and whether the process that wrote it may live; None: it had a lock."""
    name = path.name.removeprefix(prefix)
    process = PROCESS.match(name)
    if not process:
        return name, None
    number, machine = process.groups()
    lives = is_process(int(number)) if machine == platform.node() else _is_recent(path)
    return name[process.end() :], lives


def _is_recent(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_ctime < ABANDONED
    except FileNotFoundError:  # whole by now
        return True


def is_process(number: int) -> bool:
    """Whether this machine has the process."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def clear(folder: Path, name: str = "*") -> None:
    """Removes what processes that are gone were writing in `folder`, as parts of `name` (a pattern)."""
    for path in folder.glob(f"{PARTIAL}*@{name}"):
        if written_by(path)[1] is False:
            discard(path)


def discard(path: Path) -> None:
    """Removes a file or a folder, or what there is left of it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically`, of text."""
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces the file in one step, on the disk when this returns. What fails leaves nothing behind."""
    clear(path.parent, glob.escape(path.name))
    partial = temporary(path)
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
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
        except OSError as error:
            raise Failed(
                f"{path} cannot be locked ({error.strerror}): its file system has no flock; choose a folder on another "
                "one, or mount it with locks (NFS: local_lock=none and a lock daemon; Lustre: -o flock)"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        folders = [path.parent.absolute()] if path.name == LOCK else []
        LOCKED.extend(folders)
        try:
            yield
        finally:
            for folder in folders:
                LOCKED.remove(folder)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Makes the folder; of several processes that write results there one writes at a time, the others wait.

    So its files are of one process, the last. Without locks they are whole all the same, each for itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TURN).open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
