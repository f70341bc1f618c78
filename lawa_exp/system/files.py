"""Small files that have either their old content or all of the new, locks that the system frees, sizes as text.

What is read whole is a regular file of a stated size (`read_small` and those made of it): a FIFO waits without end, a
device has none, and a few bytes of YAML or JSON can stand for gigabytes.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lawa_exp.system.errors import Failed, InUse, UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL = ".partial-"  # begins the name of what is being written, until it is whole
PROCESS = re.compile(r"(\d{1,7})@([^@]*)@")  # goes on so, where no lock says whose it is: process and machine
ABANDONED = 86_400  # seconds without a change, after which another machine's is a leftover: containers change names
LOCK = ".lock"  # of the whole folder that it is in
TURN = ".writing"  # see `in_turn`
LOCKED: list[Path] = []  # such folders, whose locks this process holds
SMALL = 32 << 20  # bytes of a file that is read whole: as JSON it takes at most some 20 times as much memory
LARGE = 1 << 30  # of a document, a text or a tokenizer
LARGEST = 1 << 40  # of a data set's file: only what has no end is refused
SMALL_YAML = 1 << 20  # which is parsed in seconds
LONGEST_LINE = 32 << 20  # bytes of a document or row
YAML_NODES = 1_000_000  # as a tree: an anchor counts as often as it is named

ELSEWHERE = ("trajectory", "averages", "resume", "states")  # may be links to another disk, see `check_links`
OWNER = ".of_run"  # in such a folder: the path of its run

OF_A_RUN = {  # what a training writes, or may come to write, in the run's folder
    *("config.yaml", "provenance.jsonl", "metrics.jsonl", "timing.jsonl", "errors.jsonl", "report.md", "curves.png"),
    *("trajectory", "averages", "readouts", "resume", "states", "code", "wandb", "curvature"),
    *("DONE", "FAILED", "DIVERGED", "STOPPED", ".lock", ".heartbeat"),
}


def open_regular(path: Path) -> BinaryIO:
    """The file, opened for reading. UserError: it is none (a FIFO, a device, links in a circle)."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # a FIFO does not wait
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise UserError(f"{path} is no file that can be read ({error.strerror})") from None
        raise
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise UserError(f"{path} is no regular file")


def read_small(path: Path, limit: int = SMALL) -> bytes:
    """The whole content of a regular file. UserError: it is none, or has more than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"{path} has {size_text(size)}, expected at most {size_text(limit)}")
        return file.read()


def read_text(path: Path, limit: int = SMALL) -> str:
    """`read_small` as text. UserError: it is not UTF-8."""
    return text_of(path, read_small(path, limit))


def text_of(path: Path, data: bytes) -> str:
    """The text that a file's content is. UserError: it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start:,})") from None


def read_json(path: Path, limit: int = SMALL) -> Any:
    """The value in a small JSON file. UserError: it is none."""
    try:
        return json.loads(read_small(path, limit))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: no JSON ({str(error)[:80]})") from None


def lines_in(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of an opened file with their ends. UserError: one has no end in sight."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UserError(f"{path}: line {number:,} has more than {size_text(LONGEST_LINE)}")
        yield line


def read_yaml(path: Path, data: bytes | None = None) -> Any:
    """The value in a small YAML file, of plain data alone. data: its content, where it was read already.

    UserError: it is none, or its anchors make it endless.
    """
    import yaml

    text = text_of(path, read_small(path, SMALL_YAML) if data is None else data)
    try:
        content = yaml.safe_load(text)  # not libyaml's: lists in lists end the process
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: no YAML ({' '.join(str(error).split())[:80]})") from None
    nodes, stack = 0, [content]
    while stack:
        nodes += 1
        if nodes > YAML_NODES:
            raise UserError(f"{path} is damaged: more than {YAML_NODES:,} values")
        value = stack.pop()
        stack += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return content


def temporary(target: Path, prefix: str = PARTIAL) -> Path:
    """The name under which `target` is written; no two processes have the same.

    It is plain under a folder that this process has locked: what is left there is the next one's to clear.
    """
    parent = target.parent.absolute()
    alone = any(parent.is_relative_to(folder) for folder in LOCKED)
    return target.with_name(prefix + ("" if alone else f"{os.getpid()}@{os.uname().nodename}@") + target.name)


def written_by(path: Path, prefix: str = PARTIAL) -> tuple[str, bool | None]:
    """The target's name in a temporary one, and whether the process that wrote it may live; None: it had a lock."""
    name = path.name.removeprefix(prefix)
    process = PROCESS.match(name)
    if not process:
        return name, None
    number, machine = process.groups()
    lives = is_process(int(number)) if machine == os.uname().nodename else _is_recent(path)
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


def check_output(flag: str, out: Path) -> None:
    """UserError: `out`, of a command's flag, is a run, or what a training wrote in it, or may come to write."""
    whole = out.resolve()
    for folder in (whole, *whole.parents):
        if is_run(folder):
            first = (*whole.relative_to(folder).parts, "")[0]
            if first in ("", *OF_A_RUN) or (folder / first).is_file():
                raise UserError(f"{flag}={out}: would write over the run {folder}; choose another folder")


def is_run(folder: Path) -> bool:
    """Whether it holds the config.yaml of a run of ours."""
    with suppress(OSError, UserError), open_regular(folder / "config.yaml") as file:
        return file.read(14) == b"trajectory_id:"
    return False


def check_links(folder: Path, key: str) -> None:
    """UserError: an entry of `folder`, or of one in it, is a link that leads out of it, and would be written through.

    A folder of large files may be on another disk, if it says there, in `OWNER`, that it is of this run. A run from
    elsewhere can bring any link, but no file outside of itself. key: how the command line names the folder.
    """
    root = folder.resolve()
    entries = _entries(root)
    own = [target for entry in entries if entry.is_symlink() and (target := _of_this_run(Path(entry.path), root))]
    inner = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    for entry in [*entries, *(e for place in (*inner, *own) for e in _entries(place))]:
        path = Path(entry.path)
        if entry.is_symlink() and not any(path.resolve().is_relative_to(place) for place in (root, *own)):
            name = path.relative_to(root) if path.is_relative_to(root) else path
            hint = ""
            if str(name) in ELSEWHERE and path.is_dir():
                import shlex

                said = f"echo {shlex.quote(str(root))} > {shlex.quote(str(path.resolve() / OWNER))}"
                hint = f"; to keep these files there: {said}"
            raise UserError(f"{key}={folder}: {name} is a link that leads out of it{hint}")


def _of_this_run(link: Path, root: Path) -> Path | None:
    """Where a folder of large files is, if that says that it is of the run `root`."""
    with suppress(OSError, UserError):
        if link.name in ELSEWHERE and Path(read_text(link / OWNER, 1 << 14).strip()) == root:
            return link.resolve()
    return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
    return []


def discard(path: Path) -> None:
    """Removes a file or a folder, or what there is left of it."""
    if path.is_dir() and not path.is_symlink():
        import shutil  # for --help it would be slow

        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def folder_for(out: Path) -> Iterator[None]:
    """Makes the folder, with those above it. Where what is done within fails, those that it made and are empty go."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # of one that is not empty
            for folder in made:
                folder.rmdir()
        raise


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
    with turn(folder / TURN):
        yield


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Waits for the lock file, and removes it at the end. On a file system without locks nobody waits."""
    with ExitStack() as opened:
        while True:
            file = opened.enter_context(path.open("a"))
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    break  # else the one before has removed it at its end
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
