"""Running checksums of byte ranges whose chunks come in order, but from several threads."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from lawa_exp.formats.crc import Crc32, crc_of_zeros
from lawa_exp.formats.stored import Region, damaged


class Stopped(Exception):
    """Another thread failed, or the process was asked to stop."""


class Checksum:
    """The running checksum of a region, whose bytes come in order but from several threads."""

    def __init__(self, region: Region, path: Path, fd: int, turn: threading.Condition, fold: bool) -> None:
        self.region, self.path, self.fd, self.turn = region, path, fd, turn
        self.planned = self.position = region.begin
        self.in_order = True
        self.crc = Crc32(region.end - region.begin, fold)
        self.sha = hashlib.sha256() if region.kind == "sha256" else None

    def plan(self, begin: int, end: int) -> int:
        """Tells of bytes that are to come; returns where those before ended."""
        before = self.planned
        self.in_order &= before <= begin
        self.planned = max(end, before)
        return before

    def update(self, before: int, begin: int, data: memoryview, stopped: Callable[[], bool]) -> None:
        """The bytes from `begin` on; those from `before`, which nobody else needs, are read here."""
        with self.turn:
            while self.position != before:
                if stopped():
                    raise Stopped
                self.turn.wait(1)
        self._skip(before, begin)
        self._add(data)
        with self.turn:
            self.position = begin + len(data)
            self.turn.notify_all()

    def finish(self) -> None:
        """The rest. UserError where the sum is not what was expected."""
        self._skip(self.position, self.region.end)
        self.position = self.region.end
        self.region.value = self.sha.hexdigest() if self.sha else self.crc.value()
        if self.region.expected is not None and self.region.value != self.region.expected:
            raise damaged(self.path, f"{self.region.what} does not have its checksum")

    def _skip(self, begin: int, end: int) -> None:
        while begin < end:
            data = os.pread(self.fd, min(end - begin, 1 << 20), begin)
            if not data:
                raise damaged(self.path, "cut short")
            self._add(data)
            begin += len(data)

    def _add(self, data: bytes | memoryview) -> None:
        if self.sha:
            self.sha.update(data)
        else:
            self.crc.update(data)


class JointChecksum(Checksum):
    """One CRC-32 for the same record of several files, in place of one for each.

    CRC is affine: that of the exclusive or of an odd number of records is the exclusive or of their CRCs (of an even
    number, as if one of zeros were added). A record that is damaged in any one file is found as surely as by its own.
    """

    def __init__(self, members: Sequence[Checksum], turn: threading.Condition, fold: bool) -> None:
        length = members[0].region.end - members[0].region.begin
        expected = 0 if len(members) % 2 else crc_of_zeros(length)
        for member in members:
            assert isinstance(member.region.expected, int)
            expected ^= member.region.expected
        super().__init__(Region(0, length, "crc32", expected, ""), members[0].path, members[0].fd, turn, fold)
        self.members = members

    def finish(self) -> None:
        assert self.position == self.region.end
        if self.crc.value() != self.region.expected:
            for member in self.members:
                member.finish()  # on its own, to name it
