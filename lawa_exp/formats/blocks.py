"""Elements that lie side by side in every file: read, added, divided, rounded and written, a chunk at a time.

For each chunk, those of all inputs are taken in step order and added, as float64, to every average that they belong to;
an average that is complete is divided, rounded once and written. A window that slides has a way of its own
(`sliding.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from lawa_exp.formats.checksums import Part
from lawa_exp.formats.dtypes import NATIVE, SIZES, Floats, decode, encode
from lawa_exp.formats.schedule import Schedule
from lawa_exp.formats.sliding import SlidingSum
from lawa_exp.formats.stored import Average, damaged, of_path
from lawa_exp.system.errors import UserError

WORKING_SET = 6 << 20  # bytes of float64 values that are worked on at a time, for a process's share of the caches
LEAST, MOST = 1 << 10, 1 << 16  # elements in a chunk
CHUNKS = 16  # in a part, which is what one process takes upon itself


@dataclass(slots=True)
class End:
    """One side of a block: bytes of a file from `offset` on. checksum: its number, if they belong to one."""

    fd: int
    path: Path
    offset: int
    checksum: int | None = None
    crc: int = 0  # of the part that is under way, so far


@dataclass(slots=True)
class Block:
    """Elements that lie side by side in every file. dtype None: bytes, taken as they are."""

    name: str
    elements: int
    dtype: str | None
    written: str | None
    schedule: Schedule
    slots: int
    ins: dict[int, End]
    outs: dict[int, End]
    slides: bool = False  # one window of `slots` inputs, from input to input
    dtypes: Mapping[int, str] = field(default_factory=dict)  # of inputs with another dtype
    tensor: Callable[[], Iterator[Block]] | None = None  # all blocks of the tensor that it is of

    @property
    def itemsize(self) -> int:
        return SIZES[self.dtype] if self.dtype else 1

    def dtype_of(self, i: int) -> str:
        return self.dtypes.get(i) or self.dtype or "uint8"

    def itemsize_of(self, i: int) -> int:
        return SIZES[self.dtype_of(i)]

    @property
    def written_itemsize(self) -> int:
        return SIZES[self.written] if self.dtype and self.written else 1

    @property
    def chunk(self) -> int:
        return max(LEAST, min(MOST, WORKING_SET // (8 * (self.slots + 2)))) * (1 if self.dtype else 8)

    def parts(self) -> Iterator[tuple[int, int]]:
        """(first, behind the last) element of each."""
        step = self.chunk * CHUNKS
        for first in range(0, self.elements, step):
            yield first, min(first + step, self.elements)


class Work:
    """Does parts of blocks, in memory that is reused. checksums: their numbers, and the parts done of each.

    constants: the tensors that hold NaN or infinity and are equal in all inputs, each with whether that is so.
    """

    def __init__(self, averages: Sequence[Average], tell: Callable[[int], None]) -> None:
        """tell: called with the bytes that were read."""
        self.averages, self.tell = averages, tell
        self.checksums: list[tuple[int, Part]] = []
        self.constants: dict[str, bool] = {}
        self._bytes = np.empty(0, np.uint8)
        self._floats = np.empty(0)
        self._out = np.empty(0, np.uint8)

    def do(self, block: Block, first: int, last: int) -> None:
        """Elements `first` to `last` - 1. UserError names the file and the tensor of what cannot be averaged."""
        step = block.chunk
        whole = last - (last - first) % step
        with np.errstate(all="ignore"):
            for begin, behind, n in ((first, whole, step), (whole, last, last - whole)):
                if begin < behind:
                    (self._average if block.dtype else self._copy)(block, range(begin, behind, n), n)
        self.tell((last - first) * sum(block.itemsize_of(i) for i in block.ins))
        sides = [(end, block.itemsize_of(i)) for i, end in block.ins.items()]
        for end, itemsize in [*sides, *((end, block.written_itemsize) for end in block.outs.values())]:
            if end.checksum is not None:
                part = (end.offset + first * itemsize, end.offset + last * itemsize, end.crc)
                self.checksums.append((end.checksum, part))
                end.crc = 0

    def _copy(self, block: Block, firsts: range, n: int) -> None:
        raw = self._raw(n)
        for first in firsts:
            for i, event in block.schedule.items():
                self._read(block, i, first, raw.data)
                for _, a, _ in event.ends:
                    self._write(block, a, first, raw)

    def _average(self, block: Block, firsts: range, n: int) -> None:
        """The chunks of n elements that begin at each of `firsts`."""
        assert block.dtype and block.written
        raw = self._raw(n * max(block.itemsize_of(i) for i in block.ins))
        floats, out = self._memory(n, block.slots + 2, n * block.written_itemsize)
        if block.slides:
            self._slide(block, firsts, raw, floats, out)
            return
        sums = floats[2:]
        operations = _operations(block, raw, floats, n)
        for first in firsts:
            for i, view, calls, ends in operations:
                self._read(block, i, first, view)
                for call in calls:
                    call()
                for slot, a, divisor in ends:
                    self._finish(block, a, first, sums[slot], divisor, out)

    def _slide(
        self, block: Block, firsts: range, raw: NDArray[np.uint8], floats: Floats, out: NDArray[np.uint8]
    ) -> None:
        assert block.dtype and block.written
        values, total, ring = floats[0], floats[1], floats[2:]
        for first in firsts:
            window = SlidingSum(ring, total, block.dtype, values.view(np.uint8))
            for i, event in block.schedule.items():
                self._read(block, i, first, raw.data)
                window.push(raw)
                for _, a, divisor in event.ends:
                    if block.written not in NATIVE:  # `encode` works in place then
                        np.copyto(values, total)
                    surely_finite = window.finite and block.written == block.dtype
                    self._finish(
                        block, a, first, total if block.written in NATIVE else values, divisor, out, surely_finite
                    )

    def _finish(
        self,
        block: Block,
        a: int,
        first: int,
        total: Floats,
        divisor: float,
        out: NDArray[np.uint8],
        surely_finite: bool = False,
    ) -> None:
        """Divides, rounds and writes a sum that is complete."""
        assert block.written
        if not encode(total, divisor, block.written, out, surely_finite):
            if not self._is_constant(block):
                raise self._not_finite(block, a, first, len(total))
            self._convert_last(block, a, first, len(total), out)
        self._write(block, a, first, out)

    def _is_constant(self, block: Block) -> bool:
        """Whether the block's tensor holds NaN or infinity and has the same bytes in all inputs."""
        if block.name not in self.constants:
            assert block.tensor
            self.constants[block.name] = all(map(self._is_equal, block.tensor()))
        return self.constants[block.name]

    def _is_equal(self, block: Block) -> bool:
        step = block.chunk
        for first in range(0, block.elements, step):
            n = min(step, block.elements - first)
            contents = (
                (
                    block.dtype_of(i),
                    os.pread(end.fd, n * block.itemsize_of(i), end.offset + first * block.itemsize_of(i)),
                )
                for i, end in block.ins.items()
            )
            if len(set(contents)) > 1:
                return False
        return True

    def _convert_last(self, block: Block, a: int, first: int, n: int, out: NDArray[np.uint8]) -> None:
        """The chunk of the average's last input, in the written dtype. UserError where that has no such numbers."""
        assert block.written
        i = self.averages[a].inputs[-1]
        end, size, dtype = block.ins[i], block.itemsize_of(i), block.dtype_of(i)
        content = np.frombuffer(os.pread(end.fd, n * size, end.offset + first * size), np.uint8).copy()
        if dtype == block.written:
            np.copyto(out, content)
            return
        values = np.array(decode(content, dtype, np.empty(n)))
        encode(values.copy(), 1, block.written, out)
        after = np.array(decode(out.copy(), block.written, np.empty(n)))
        special = ~np.isfinite(values)
        if not special.any():
            raise self._not_finite(block, a, first, n)
        same = np.array_equal(after[special], values[special], equal_nan=True) and np.isfinite(after[~special]).all()
        if not same:
            raise UserError(f"{end.path}: {block.name} holds numbers that {block.written} does not have")

    def _not_finite(self, block: Block, a: int, first: int, n: int) -> UserError:
        """Who it was: an input that holds NaN or infinity, or a result that its type cannot hold."""
        assert block.dtype
        for i in self.averages[a].inputs:
            if i in block.ins:
                end = block.ins[i]
                size = block.itemsize_of(i)
                raw = os.pread(end.fd, n * size, end.offset + first * size)
                x = decode(np.frombuffer(raw, np.uint8).copy(), block.dtype_of(i), np.empty(n))
                if not np.isfinite(x).all():
                    return UserError(f"{end.path}: {block.name} holds NaN or infinity, and is not equal in all inputs")
        return UserError(f"{block.name}: the average is too large for {block.written}")

    # Files

    def _read(self, block: Block, i: int, first: int, view: memoryview) -> None:
        end = block.ins[i]
        at = end.offset + first * block.itemsize_of(i)
        try:
            got = os.preadv(end.fd, [view], at)
            while 0 < got < len(view) and (more := os.preadv(end.fd, [view[got:]], at + got)):
                got += more
        except OSError as error:
            raise of_path(error, end.path) from None
        if got < len(view):
            raise damaged(end.path, f"{block.name} is cut short")
        if end.checksum is not None:
            end.crc = crc32(view, end.crc)

    def _write(self, block: Block, a: int, first: int, raw: NDArray[np.uint8]) -> None:
        end = block.outs[a]
        try:
            write(end.fd, raw.data, end.offset + first * block.written_itemsize)
        except OSError as error:
            raise of_path(error, end.path) from None
        if end.checksum is not None:
            end.crc = crc32(raw.data, end.crc)

    # Memory

    def _raw(self, n: int) -> NDArray[np.uint8]:
        """n bytes for what is read."""
        if len(self._bytes) < n:
            self._bytes = np.empty(n, np.uint8)
        return self._bytes[:n]

    def _memory(self, n: int, rows: int, results: int) -> tuple[Floats, NDArray[np.uint8]]:
        """float64 [rows, n], and bytes for the results."""
        if len(self._floats) < n * rows:
            self._floats = np.empty(n * rows)
        if len(self._out) < results:
            self._out = np.empty(results, np.uint8)
        return self._floats[: n * rows].reshape(rows, n), self._out[:results]


Operations = list[tuple[int, memoryview, list[Callable[[], object]], list[tuple[int, int, float]]]]


def _operations(block: Block, memory: NDArray[np.uint8], floats: Floats, n: int) -> Operations:
    """For each input: its number, where its chunk of n elements goes, what is done with it, and the averages complete.

    Bound to the memory beforehand: with small chunks, looking it up each time would take as long as adding.
    floats: [2 + slots, n], scratch and the sums.
    """
    assert block.dtype
    values, scaled, sums = floats[0], floats[1], floats[2:]
    operations: Operations = []
    for i, event in block.schedule.items():
        dtype = block.dtype_of(i)
        raw = memory[: n * SIZES[dtype]]
        direct = block.slots == 1 and dtype in NATIVE  # used once: numpy converts it as it adds
        calls: list[Callable[[], object]] = []
        x: NDArray[np.floating]
        begun: int | None = None  # the slot that x lies in already
        if direct or dtype == "float64":
            x = raw.view(NATIVE[dtype])
        else:
            begun = next((slot for slot, weight in event.begins if weight == 1), None)
            x = decoded = values if begun is None else sums[begun]
            calls.append(partial(decode, raw, dtype, decoded))
        for slot, weight in event.begins:
            if weight != 1:
                calls.append(partial(np.multiply, x, weight, out=sums[slot], dtype=np.float64))
            elif slot != begun:
                calls.append(partial(np.copyto, sums[slot], x))
        for low, high, weight in event.joins:
            term = x
            if weight != 1:
                term = scaled
                calls.append(partial(np.multiply, x, weight, out=scaled, dtype=np.float64))
            calls.append(partial(np.add, sums[low:high], term, out=sums[low:high], dtype=np.float64))
        operations.append((i, raw.data, calls, event.ends))
    return operations


def write(fd: int, view: memoryview, at: int) -> None:
    """All of it."""
    while len(view):
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done
