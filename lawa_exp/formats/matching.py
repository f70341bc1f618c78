"""The tensors of several checkpoints brought together by name, and cut into runs that are contiguous in all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    """Its tensors by canonical name (by their own where that would not be unique)."""
    found = [(n, Piece(s, n, p)) for s, source in enumerate(checkpoint.sources) for n, p in source.tensors.items()]
    short = {canonical(n): piece for n, piece in found}
    return short if len(short) == len(found) else dict(found)


def matched(checkpoints: Sequence[Checkpoint]) -> list[dict[str, Piece]]:
    """The tensors of all. UserError names file and tensor where names, shapes or dtypes differ."""
    pieces = [pieces_of(c) for c in checkpoints]
    first = pieces[0]
    for checkpoint, others in zip(checkpoints[1:], pieces[1:], strict=True):
        for name in sorted(first.keys() ^ others.keys()):
            has, lacks = (checkpoint, checkpoints[0]) if name in others else (checkpoints[0], checkpoint)
            raise UserError(f"{lacks.path}: no tensor {name}, but {has.path} has it; they are not of one model")
        for name, piece in others.items():
            for what in ("shape", "dtype"):
                here, there = getattr(piece.place, what), getattr(first[name].place, what)
                if here != there:
                    raise UserError(f"{checkpoint.path}: {name} has {what} {here}, in {checkpoints[0].path} {there}")
    return pieces


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
