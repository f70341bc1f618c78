"""Tokens as numbers: nanoGPT's train.bin and val.bin, with a meta.pkl or meta.json in their folder."""

from __future__ import annotations

import numpy as np

from lawa_exp.axes.dataset.encodings import WIDTHS, other_tokens, vocabulary_in
from lawa_exp.convert.validation.content import Content, Place, TokenArray, sole_file
from lawa_exp.system.errors import UserError

HEAD = 1 << 20  # bytes that are looked at
LARGEST_VOCABULARY = 1 << 24


def content(place: Place) -> Content | None:
    """UserError: the files are no tokens of any width that is read."""
    path = sole_file(place, (".bin",))
    if path is None:
        return None
    vocab_size = vocabulary_in(path.parent)
    with path.open("rb") as file:
        head = file.read(HEAD)
    first: str | None = None
    for width in WIDTHS:
        problem = other_tokens(head, width, vocab_size or LARGEST_VOCABULARY)
        first = first or problem
        size = path.stat().st_size
        if problem or size % np.dtype(width).itemsize or not size:
            continue
        tokens = np.memmap(path, width, "r")
        low, high = int(tokens[:HEAD].min()), int(tokens[:HEAD].max())
        if low >= 0 and high < (vocab_size or LARGEST_VOCABULARY):
            return TokenArray(tokens, vocab_size, f"{path}, {len(tokens):,} tokens ({width})")
    raise UserError(
        f"{path} {(first or 'holds no tokens').split(': give dataset')[0]}; expected one of {', '.join(WIDTHS)}"
    )
