"""What a PyTorch file holds besides its tensors, read as plain dictionaries and numbers. No name in it is looked up."""

from __future__ import annotations

import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from lawa_exp.formats.stored import ABOUT
from lawa_exp.formats.unpickling import Anything, Bounded
from lawa_exp.system.files import SMALL


def content_of(path: Path) -> tuple[object, str]:
    """The object in a file, without its tensors, and our own metadata where it has any.

    A damaged file can raise anything.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        return _of_zip(file) if is_zip else (_legacy(file), "")


class _PlainReader(Bounded):
    """Dictionaries, lists and numbers without tensors and all other objects: several times faster than `Reader`."""

    def persistent_load(self, pid: object) -> None:
        return None

    def find_class(self, module: str, name: str) -> type:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else Anything


def _of_zip(file: BinaryIO) -> tuple[object, str]:
    head = file.read(30)
    names, extra = struct.unpack("<HH", head[26:30])
    size = int.from_bytes(head[22:26], "little")  # 0 where it comes later
    is_first = file.read(names).endswith(b"/data.pkl") and head[8:10] == b"\0\0"  # and stored, as torch does it
    file.seek(30 + names + extra)
    content = _PlainReader(file.read(size) if is_first and 0 < size <= SMALL else _record(file, "data.pkl")).load()
    file.seek(-22, os.SEEK_END)
    directory = int.from_bytes(file.read()[12:16], "little")  # its bytes
    file.seek(-min(directory + 200, file.tell()), os.SEEK_END)
    is_ours = f"/{ABOUT}.json".encode() in file.read(SMALL)
    return content, _record(file, f"{ABOUT}.json").decode() if is_ours else ""


def _record(file: BinaryIO, name: str) -> bytes:
    with zipfile.ZipFile(file) as archive:
        (info,) = (info for path, info in archive.NameToInfo.items() if path.partition("/")[2] == name)
        if info.file_size > SMALL:
            raise ValueError
        return archive.read(info)


def _legacy(file: BinaryIO) -> object:
    """The object in a file of torch before 1.6, behind a magic number, a version and the system's sizes."""
    pickled, at = file.read(SMALL), 0
    for _ in range(4):
        reader = _PlainReader(pickled, at)
        content, at = reader.load(), reader.at
    return content
