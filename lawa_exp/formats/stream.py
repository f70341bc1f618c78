"""Weighted means of checkpoints: every input is read once, and all outputs grow together.

Here it is planned which elements of which files belong together, and the work is shared by processes; what is done with
them stands in `blocks.py`. Memory is a few chunks and the plan a process, whatever the size of the model's tensors.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lawa_exp.formats.blocks import Block, End, Work, write
from lawa_exp.formats.checksums import Checksum, Part
from lawa_exp.formats.constants import EQUAL, REASONS, equal, why_copied
from lawa_exp.formats.dtypes import FLOATS, OPAQUE, SIZES
from lawa_exp.formats.factors import groups, inseparable
from lawa_exp.formats.matching import Piece, matched, runs
from lawa_exp.formats.schedule import Schedule, schedule
from lawa_exp.formats.sliding import LAYOUT, window_of
from lawa_exp.formats.stored import (
    Average,
    Checkpoint,
    Place,
    Region,
    Writer,
    count,
    extent,
    may_overlap_itself,
    using,
)
from lawa_exp.formats.workers import shared
from lawa_exp.system.errors import UserError

SHARE = 16 << 20  # bytes read, from which another process pays
PLAN, PLANS = 1600, 100 << 20  # bytes: of the plan for one tensor in one file, about; of all processes' plans together


@dataclass
class OutFile:
    """An output file that is being written; `path` is its temporary place."""

    path: Path
    writer: Writer
    fd: int


@dataclass
class Sides:
    """Where one tensor lies in each input, and in each output: the file's number in it, and the place there."""

    ins: dict[int, tuple[int, Place]]
    outs: dict[int, tuple[int, Place]]
    averaged: bool

    def lie_alike(self, other: Sides, a: int) -> bool:
        """Whether this and another tensor lie to each other in every input as they do in output `a`."""

        def relation(one: tuple[int, Place], two: tuple[int, Place]) -> tuple[object, ...]:
            (source, place), (other_source, other_place) = one, two
            distance = (place.offset - other_place.offset) / SIZES[place.dtype]
            return source == other_source, distance, place.strides, other_place.strides

        if self.averaged != other.averaged or self.ins.keys() != other.ins.keys():
            return False
        there = relation(self.outs[a], other.outs[a])
        return all(relation(self.ins[i], other.ins[i]) == there for i in self.ins)


class Stream:
    """Plans the blocks of all outputs, then does them. `total`: bytes to be read."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        averages: Sequence[Average],
        outputs: Sequence[Sequence[OutFile]],
        processes: int,
        cast: bool = False,
        each_factor: bool = False,
    ) -> None:
        """outputs: of each average, the files in the order of its last checkpoint's sources.

        cast: the dtype of floating-point tensors may differ between the checkpoints. each_factor: factors of one
        product are averaged one by one. UserError names what cannot be averaged.
        """
        self.processes, self.cast, self.each_factor = processes, cast, each_factor
        self.copied = Counter(dict.fromkeys(REASONS, 0))  # tensors that are the last input's, by the reason
        self.checksums: list[Checksum] = []
        self.numbers: dict[int, int] = {}  # of a region's checksum
        self.opened: list[int] = []
        self.checkpoints, self.averages, self.outputs = checkpoints, averages, outputs
        self.fds: dict[tuple[int, int], int] = {}
        self.beneath: list[Callable[[], Iterator[Block]]] = []  # done before the others, which write over it
        self.blocks: list[Callable[[], Iterator[Block]]] = []
        self.total = 0
        self.window = window_of(averages)
        try:
            self._plan()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for fd in self.opened:
            os.close(fd)
        self.opened.clear()

    # Planning

    def _plan(self) -> None:
        pieces = matched(self.checkpoints, self.cast)
        self._check(pieces)
        numbered = dict(enumerate(self.averages))
        means, latest = schedule(numbered), schedule({a: average.latest for a, average in numbered.items()})
        last = {a: average.inputs[-1] for a, average in numbered.items()}

        def out_place(name: str, a: int) -> tuple[int, Place]:
            piece = pieces[last[a]][name]
            return piece.source, self.outputs[a][piece.source].writer.places[piece.name]

        final = len(self.averages) - 1
        order = sorted(pieces[0], key=lambda n: (out_place(n, final)[0], out_place(n, final)[1].offset))
        tensors: dict[str, Sides] = {}
        for name in order:
            place = pieces[0][name].place
            if count(place.shape):
                why = why_copied(name, place.dtype)
                if why:
                    self.copied[why] += 1
                plan, _ = latest if why else means
                ins = {i: (pieces[i][name].source, pieces[i][name].place) for i in plan}
                tensors[name] = Sides(ins, {a: out_place(name, a) for a in numbered}, not why)
        seconds = {name for a in numbered for name in self._second_names(a, tensors)}
        for name, sides in tensors.items():
            if name not in seconds:
                dtype, written = next(iter(sides.ins.values()))[1].dtype, sides.outs[final][1].dtype
                plan, slots = means if sides.averaged else latest
                self._add(
                    self.blocks, name, dtype if dtype in FLOATS else None, written, plan, slots, sides.ins, sides.outs
                )
        for a, files in enumerate(self.outputs):
            plan, slots = schedule({a: self.averages[a].latest})
            for source, file in enumerate(files):
                for blocks, copies in ((self.blocks, file.writer.copies), (self.beneath, file.writer.beneath)):
                    for what, there, here in copies:
                        if count(here.shape):
                            converted = there.dtype if there.dtype != here.dtype else None
                            ins, outs = {last[a]: (source, there)}, {a: (source, here)}
                            self._add(blocks, what, converted, here.dtype, plan, slots, ins, outs)

    def _check(self, pieces: Sequence[Mapping[str, Piece]]) -> None:
        """UserError names tensors that mean something only together, or have no mean, and differ between the inputs."""

        def differs(name: str) -> bool:
            places = [
                (c.sources[p[name].source].path, p[name].place) for c, p in zip(self.checkpoints, pieces, strict=True)
            ]
            return not equal(places)

        last, places = self.checkpoints[-1].path, {name: piece.place for name, piece in pieces[0].items()}
        for name, place in places.items():
            if place.dtype in OPAQUE and differs(name):
                raise UserError(
                    f"{last}: {name} has dtype {place.dtype}, which cannot be averaged, and is not equal in all inputs"
                )
        for group in groups(places):
            if not (self.each_factor and group.factors) and inseparable(group, differs):
                raise UserError(f"{last}: {', '.join(group.names[:3])} {group.why}")

    def _second_names(self, a: int, tensors: dict[str, Sides]) -> Iterator[str]:
        """The tensors that are others under a second name. UserError where memory is shared in output `a` alone.

        Tensors that share memory there are written each on its own, which is consistent if all inputs share in the
        same way.
        """
        path = self.checkpoints[self.averages[a].inputs[-1]].path
        end, anchor = (-1, 0), ""
        seen: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], str] = {}
        for name in sorted(tensors, key=lambda n: (tensors[n].outs[a][0], tensors[n].outs[a][1].offset)):
            sides = tensors[name]
            source, place = sides.outs[a]
            if may_overlap_itself(place) and any(p.strides != place.strides for _, p in sides.ins.values()):
                raise UserError(f"{path}: elements of {name} share memory there, but not in every other input")
            if (source, place.offset) < end:
                if not sides.lie_alike(tensors[anchor], a):
                    raise UserError(
                        f"{path}: {name} and {anchor} share memory there, but not in the same way in every other input"
                    )
            else:
                anchor = name
            end = max(end, (source, place.offset + extent(place) * SIZES[place.dtype]))
            if seen.setdefault((source, place.offset, place.shape, place.strides), name) != name:
                yield name

    def _add(
        self,
        into: list[Callable[[], Iterator[Block]]],
        name: str,
        dtype: str | None,
        written: str | None,
        plan: Schedule,
        slots: int,
        ins: dict[int, tuple[int, Place]],
        outs: dict[int, tuple[int, Place]],
    ) -> None:
        """Plans one tensor, its blocks added to `into`. A dtype of None: its bytes are copied."""
        shape = next(iter(outs.values()))[1].shape
        sides = [*ins.values(), *outs.values()]
        length, starts = runs(shape, [place.strides for _, place in sides])
        whole = length == count(shape)
        itemsizes = [SIZES[place.dtype] for _, place in sides]
        ends = [self._in_end(i, *side) for i, side in ins.items()] + [
            self._out_end(a, *side) for a, side in outs.items()
        ]
        if not whole:  # many small parts: their bytes are read once more at the end
            for end in ends:
                end.checksum = None
        elements = length if dtype else length * itemsizes[0]
        self.total += count(shape) * sum(itemsizes[: len(ins)])

        dtypes = {i: place.dtype for i, (_, place) in ins.items() if dtype and place.dtype != dtype}

        def blocks() -> Iterator[Block]:
            for start in [(0,) * len(sides)] if whole else starts:
                moved = [
                    End(e.fd, e.path, e.offset + at * size, e.checksum)
                    for e, at, size in zip(ends, start, itemsizes, strict=True)
                ]
                sides_in = dict(zip(ins, moved[: len(ins)], strict=True))
                sides_out = dict(zip(outs, moved[len(ins) :], strict=True))
                slides = dtype in LAYOUT and slots == self.window and not dtypes
                yield Block(name, elements, dtype, written, plan, slots, sides_in, sides_out, slides, dtypes, blocks)

        into.append(blocks)

    def _in_end(self, i: int, source: int, place: Place) -> End:
        checkpoint = self.checkpoints[i]
        path = checkpoint.sources[source].path
        if (i, source) not in self.fds:
            self.fds[i, source] = os.open(path, os.O_RDONLY)
            self.opened.append(self.fds[i, source])
        fd = self.fds[i, source]
        shown = checkpoint.path if checkpoint.convert else path
        return End(fd, shown, place.offset, self._checksum(place.region, shown, fd))

    def _out_end(self, a: int, source: int, place: Place) -> End:
        file = self.outputs[a][source]
        return End(file.fd, file.path, place.offset, self._checksum(place.region, file.path, file.fd))

    def _checksum(self, region: Region | None, path: Path, fd: int) -> int | None:
        """The number of a region's checksum."""
        if region is None:
            return None
        if id(region) not in self.numbers:
            self.numbers[id(region)] = len(self.checksums)
            self.checksums.append(Checksum(region, path, fd))
        return self.numbers[id(region)]

    # Doing

    def run(self, progress: Callable[[int], None], every: float) -> None:
        """Does everything and finishes the output files. progress: called with the bytes read, each `every` seconds."""
        before = 0

        def tell(more: int) -> None:
            nonlocal before
            before += more
            progress(before)

        beneath = Work(self.averages, tell)
        for block, first, last in _parts(self.beneath):
            beneath.do(block, first, last)
        plan = PLAN * sum(len(source.tensors) for c in self.checkpoints for source in c.sources)
        workers = max(1, min(self.processes, self.total // SHARE, PLANS // max(1, plan)))
        found = shared(self._work, workers, lambda done: progress(before + done), every)
        constants: set[str] = set()
        for parts, equal_in_all in [(beneath.checksums, {}), *found]:
            constants |= {name for name, is_so in equal_in_all.items() if is_so}
            for number, part in parts:
                self.checksums[number].parts.append(part)
        self.copied[EQUAL] += len(constants)
        for file in itertools.chain(*self.outputs):
            for region in file.writer.regions:  # nothing was written to some: empty storages
                self._checksum(region, file.path, file.fd)
        for checksum in self.checksums:
            checksum.finish()
        for file in itertools.chain(*self.outputs):
            with using(file.path):
                file.writer.finish(lambda at, data, fd=file.fd: write(fd, memoryview(data), at))  # type: ignore[misc]

    def _work(
        self, claim: Callable[[], int], tell: Callable[[int], None]
    ) -> tuple[list[tuple[int, Part]], dict[str, bool]]:
        """Does the parts whose numbers it claims; returns the checksums' numbers with the parts it did of each.

        And the `constants` of the work.
        """
        work, mine = Work(self.averages, tell), claim()
        for number, part in enumerate(_parts(self.blocks)):
            if number == mine:
                work.do(*part)
                mine = claim()
        return work.checksums, work.constants


def _parts(of: list[Callable[[], Iterator[Block]]]) -> Iterator[tuple[Block, int, int]]:
    for blocks in of:
        for block in blocks():
            for first, last in block.parts():
                yield block, first, last
