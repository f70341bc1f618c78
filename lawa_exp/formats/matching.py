"""The tensors of several checkpoints brought together by name, and cut into runs that are contiguous in all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lawa_exp.formats.dtypes import FLOATS
from lawa_exp.formats.stored import Checkpoint, Place
from lawa_exp.system.errors import UserError

PREFIXES = re.compile(r"^(module\.)+|(?<![^.])_orig_mod\.")  # of DDP and torch.compile, which say nothing of the tensor


@dataclass
class Piece:
    """A tensor of one checkpoint."""

    source: int
    name: str
    place: Place


def canonical(name: str) -> str:
    """The tensor's name without what DDP and torch.compile put into it."""
    return PREFIXES.sub("", name)


def pieces_of(checkpoint: Checkpoint) -> dict[str, Piece]:
    """Its tensors by canonical name (by their own where that would not be unique), of a part behind the part's."""
    found = [
        (checkpoint.parts.get(source.path, ""), Piece(s, name, place))
        for s, source in enumerate(checkpoint.sources)
        for name, place in source.tensors.items()
    ]
    short = {part + canonical(piece.name): piece for part, piece in found}
    return short if len(short) == len(found) else {part + piece.name: piece for part, piece in found}


def matched(checkpoints: Sequence[Checkpoint], cast: bool = False) -> list[dict[str, Piece]]:
    """The tensors of all. UserError names file and tensor where names, shapes or dtypes differ.

    One prefix that all names of a checkpoint have (`model.`) may be missing in another. cast: floating-point tensors
    may be of other types.
    """
    pieces = [pieces_of(c) for c in checkpoints]
    if any(others.keys() != pieces[0].keys() for others in pieces):
        bare = [{n.removeprefix(common_prefix(list(p))): piece for n, piece in p.items()} for p in pieces]
        if all(others.keys() == bare[0].keys() for others in bare):
            pieces = bare
    first = pieces[0]
    for checkpoint, others in zip(checkpoints[1:], pieces[1:], strict=True):
        for name in sorted(first.keys() ^ others.keys()):
            has, lacks = (checkpoint, checkpoints[0]) if name in others else (checkpoints[0], checkpoint)
            raise UserError(f"{lacks.path}: no tensor {name}, but {has.path} has it; they are not of one model")
        for name, piece in others.items():
            for what in ("shape", "dtype"):
                here, there = getattr(piece.place, what), getattr(first[name].place, what)
                floats = what == "dtype" and here in FLOATS and there in FLOATS
                if here != there and not (floats and cast):
                    how = f"; --dtype {max(here, there, key=_precision)} averages them all the same" if floats else ""
                    raise UserError(
                        f"{checkpoint.path}: {name} has {what} {here}, in {checkpoints[0].path} {there}{how}"
                    )
    return pieces


def _precision(dtype: str) -> tuple[int, bool]:
    """Orders floating-point types by their size; of two of one size bfloat16 has the larger range."""
    return FLOATS[dtype], dtype == "bfloat16"


def common_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a dot (`model.`)."""
    parts = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return "".join(f"{part}." for part in common)


def runs(shape: tuple[int, ...], strides: Sequence[tuple[int, ...]]) -> tuple[int, Iterator[tuple[int, ...]]]:
    """How tensors of one shape and several strides are cut into runs that are contiguous in all of them.

    Returns the run's length and, for each run, its first element's offset in each. Order is that of the last's memory.
    """
    dims = [d for d, size in enumerate(shape) if size > 1 and any(s[d] for s in strides)]
    dims.sort(key=lambda d: -strides[-1][d])
    length = 1
    while dims and all(s[dims[-1]] == length for s in strides):
        length *= shape[dims.pop()]
    positions = itertools.product(*(range(shape[d]) for d in dims))
    return length, (tuple(sum(i * s[d] for i, d in zip(at, dims, strict=True)) for s in strides) for at in positions)
