"""CRC-32 of byte ranges, put together from those of their parts, in whatever order and process these were read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from isal.isal_zlib import crc32, crc32_combine

from lawa_exp.formats.stored import Place, Region, damaged

Part = tuple[int, int, int]  # begin, end, CRC-32 of these bytes of the file


@dataclass(eq=False)
class Checksum:
    """Of `region` of an open file. parts: what has been read or written already; the rest is read by `finish`."""

    region: Region
    path: Path
    fd: int
    parts: list[Part] = field(default_factory=list)

    def finish(self) -> None:
        """Fills in `region.value`. UserError where it is not what was expected."""
        position, crc = self.region.begin, 0
        for begin, end, part in sorted(self.parts):
            if begin >= position:  # else tensors share these bytes
                crc = crc32_combine(self._read(position, begin, crc), part, end - begin)
                position = end
        self.region.value = self._read(position, self.region.end, crc)
        if self.region.expected is not None and self.region.value != self.region.expected:
            raise damaged(self.path, f"{self.region.what} does not have its checksum")

    def _read(self, begin: int, end: int, crc: int) -> int:
        while begin < end:
            data = os.pread(self.fd, min(end - begin, 1 << 20), begin)
            if not data:
                raise damaged(self.path, "cut short")
            crc = crc32(data, crc)
            begin += len(data)
        return crc


def check_places(path: Path, places: Iterable[Place]) -> None:
    """UserError: bytes of tensors in the file do not have the checksum that they were written with."""
    regions = {id(place.region): place.region for place in places if place.region}
    with path.open("rb") as file:
        for region in regions.values():
            Checksum(region, path, file.fileno()).finish()


def check_records(path: Path) -> None:
    """`check_places` of all records of a zip file of torch.save; of a file from before PyTorch 1.6 nothing is known."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if not record.CRC:  # torch can be told not to compute them
                continue
            try:
                with archive.open(record) as file:
                    while file.read(1 << 20):
                        pass
            except zipfile.BadZipFile:
                raise damaged(path, f"its record {record.filename} does not have its checksum") from None
