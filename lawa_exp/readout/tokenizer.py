"""The tokenizer that belongs to checkpoints of a language model, and whether it fits."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from lawa_exp.axes.dataset.tokenizers import TOKENIZERS, Tokenizer, load_tokenizer, read_tokenizer, tokenizer_of
from lawa_exp.seams.dataset import DatasetSettings
from lawa_exp.system.errors import UserError

FILE = "tokenizer.json"  # in the folder of a checkpoint
PADDING = 512  # rows that a vocabulary may have beyond its tokenizer's: padded to a multiple of 128 times the GPUs
PROBE = "The 2 quick brown foxes, naïve as ever,\n\tjumped over def f(x):\n    return x**12 -- didn't they?"


def of_tokens(dataset: DatasetSettings) -> Tokenizer | None:
    """The one that made a data set's tokens, where the settings tell it and its files are on this machine."""
    name, path = tokenizer_of(dataset)
    with contextlib.suppress(UserError):
        return load_tokenizer(name, path) if name else None
    return None


def run_tokenizer(dataset: DatasetSettings) -> Tokenizer:
    """Of the data set that a run was trained on."""
    name, path = tokenizer_of(dataset)
    if name is None:
        raise UserError(f"--tokenizer is missing: dataset={dataset.name} does not say which made its tokens")
    return load_tokenizer(name, path)


def requested_tokenizer(requested: str | None, folder: Path) -> Tokenizer:
    """By name, from a file, or (None) the one in the folder of the checkpoint."""
    if requested in TOKENIZERS and requested != "json":
        return load_tokenizer(requested, None)
    file = Path(requested) if requested else folder / FILE
    if requested and file.is_dir():
        file = file / FILE
    if not file.is_file():
        where = (
            f"--tokenizer={requested}: no such file" if requested else f"--tokenizer is missing: no {FILE} in {folder}"
        )
        raise UserError(f"{where}; expected {', '.join(n for n in TOKENIZERS if n != 'json')}, or a {FILE}")
    return read_tokenizer(file, file.name)


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int | None, folder: Path, origin: str) -> None:
    """UserError where the tokens are not those that the checkpoint's model was trained on, as far as its folder tells.

    vocab_size: the model's, None where it has none. origin: of the tokenizer, for the message.
    """
    carried = folder / FILE
    if carried.is_file():
        own = read_tokenizer(carried, "its own")
        if not np.array_equal(own.encode(PROBE), tokenizer.encode(PROBE)):
            raise UserError(f"{origin} does not fit the model: {carried} gives other tokens")
    if vocab_size is None:
        return
    elsewhere = (folder / "config.json").is_file() and not carried.is_file()
    if tokenizer.vocab_size > vocab_size or (elsewhere and vocab_size - tokenizer.vocab_size >= PADDING):
        counts = f"{tokenizer.vocab_size:,} tokens, and a vocabulary of {vocab_size:,} there"
        raise UserError(f"{origin} does not fit the model: {counts}")
