"""What the small files of a folder were when they were last written: sizes and CRC32s, in a file in the same folder.

Who reads a file holds it against that, so that one which was cut, changed or mixed up is named and never taken for a
result. A file that is not in it (being appended to, made by hand, of an earlier version) is taken as it is.

Who changes it holds a lock (flock) on a file in the folder, so that no two writers, threads or processes, undo each
other's entries. On NFS that holds between machines where the mount has locks (NFSv4, or a lock daemon), else within
one: two machines that write there at one time may then leave an entry that names a whole file as damaged. Readers take
no lock.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path

from lawa_exp.system.errors import Failed
from lawa_exp.system.files import SMALL, read_small, turn, write_text_atomically

NAME = ".checksums"
TURN = ".checksums.lock"
CHUNK = 1 << 20  # bytes
Sum = tuple[int, int]  # size in bytes, CRC32


class Changed(Failed):
    """A file that is not what was written."""


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one step, as `write_text_atomically`, and remembers it.

    A kill between the two leaves the file that was there before, which is remembered too; a new one is remembered last.
    """
    data = text.encode()
    with turn(path.parent / TURN):
        known, new = _read(path.parent), (len(data), zlib.crc32(data))
        before = (known.get(path.name) or [_sum(path)])[-1:] if path.is_file() else []
        if not before:
            _forget(path.parent, [path.name])
        elif before != [new]:
            _write(path.parent, {**known, path.name: [*before, new]})
        write_text_atomically(path, text)
        _write(path.parent, {**known, path.name: [new]})


def remember(folder: Path, names: Iterable[str]) -> None:
    """Takes these files as they are now; those that are not there are forgotten."""
    with turn(folder / TURN):
        known = _read(folder)
        for name in names:
            known.pop(name, None)
            if (folder / name).is_file():
                known[name] = [_sum(folder / name)]
        _write(folder, known)


def forget(folder: Path, names: Collection[str]) -> None:
    """Of files that are about to be appended to; nothing where the folder is not there yet."""
    if not folder.is_dir():
        return
    with turn(folder / TURN):
        _forget(folder, names)


def _forget(folder: Path, names: Collection[str]) -> None:
    known = _read(folder)
    left = {name: sums for name, sums in known.items() if name not in names}
    if left:
        if left != known:
            _write(folder, left)
    elif known:
        (folder / NAME).unlink(missing_ok=True)


def known_sums(path: Path) -> list[Sum]:
    """What the file may be; empty: it is taken as it is."""
    return _read(path.parent).get(path.name, [])


def check(path: Path, sums: list[Sum], content: Sum) -> None:
    """`Changed` where the content is none of these."""
    if sums and content not in sums:
        size = f"{content[0]:,} bytes, {sums[-1][0]:,} were written"
        if content[0] == sums[-1][0]:
            size = "its checksum differs"
        raise Changed(
            f"{path} is damaged, or was changed since it was written ({size}): put it back, or remove "
            f"{path.parent / NAME} to take it as it is"
        )


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """The file's content. `Changed`: it is not what was written. UserError: it has more than `limit` bytes."""
    before = None
    while True:  # a writer may have come between the two: what is damaged is so twice
        sums, data = known_sums(path), read_small(path, limit)
        if not sums or (len(data), zlib.crc32(data)) in sums or (sums, data) == before:
            check(path, sums, (len(data), zlib.crc32(data)))
            return data
        before = sums, data


def crc32_of(path: Path, size: int) -> int:
    """The CRC32 of the first `size` bytes of a file."""
    crc, left = 0, size
    with path.open("rb") as file:
        while left and (data := file.read(min(CHUNK, left))):
            crc, left = zlib.crc32(data, crc), left - len(data)
    return crc


def _sum(path: Path) -> Sum:
    size = path.stat().st_size
    return size, crc32_of(path, size)


def _read(folder: Path) -> dict[str, list[Sum]]:
    try:
        content = json.loads(read_small(folder / NAME))
        return {name: [(int(size), int(crc)) for size, crc in sums] for name, sums in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(folder: Path, known: dict[str, list[Sum]]) -> None:
    write_text_atomically(folder / NAME, json.dumps(known, indent=1) + "\n")
