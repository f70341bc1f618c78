"""Tensors that are copied from the last input instead of averaged: which, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lawa_exp.formats.dtypes import FLOATS, OPAQUE, SIZES
from lawa_exp.formats.matching import runs
from lawa_exp.formats.stored import STATISTICS, Place, using

INTEGERS, RUNNING = "of integers or bools", "of BatchNorm's running statistics"
EQUAL = "with NaN, infinite or complex numbers, equal in all inputs"
REASONS = INTEGERS, RUNNING, EQUAL
PIECE = 1 << 20  # bytes that are compared at a time


def why_copied(name: str, dtype: str) -> str:
    """Empty for a tensor that is averaged."""
    if dtype in OPAQUE:
        return EQUAL
    if dtype not in FLOATS:
        return INTEGERS
    return RUNNING if STATISTICS.search(name) else ""


def equal(tensors: Sequence[tuple[Path, Place]]) -> bool:
    """Whether the same tensor has the same bytes in all files."""
    if len({place.dtype for _, place in tensors}) > 1:
        return False
    size, shape = SIZES[tensors[0][1].dtype], tensors[0][1].shape
    length, starts = runs(shape, [place.strides for _, place in tensors])
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb", buffering=0)) for path, _ in tensors]

        def piece(number: int, at: int, n: int) -> bytes:
            path, place = tensors[number]
            with using(path):
                return os.pread(files[number].fileno(), n, place.offset + at)

        for start in starts:
            for at in range(0, length * size, PIECE):
                n = min(PIECE, length * size - at)
                first = piece(0, start[0] * size + at, n)
                if any(piece(i, start[i] * size + at, n) != first for i in range(1, len(files))):
                    return False
    return True
