"""Tokens already on the disk: nanoGPT-style `train.bin` and `val.bin`, uint16 unless said otherwise, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lawa_exp.axes.dataset.base import BaseSettings
from lawa_exp.axes.dataset.blocks import PIECE, PIECES, WHOLE_FILE, Blocks, fingerprint_files, sampled
from lawa_exp.axes.dataset.encodings import WIDTHS, other_tokens, vocabulary_in
from lawa_exp.axes.dataset.places import find, sole
from lawa_exp.config.rules import integer, one_of, optional, plain_name, setting, text
from lawa_exp.system.errors import UserError


@dataclass(frozen=True)
class TokensSettings(BaseSettings):
    """`path` holds train.bin, val.bin and, if there is one, test.bin, of tokens of the type `dtype`, little-endian.

    vocab_size: where no meta.json or meta.pkl in `path` names it; it is checked against the model's.
    """

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    path: str | None = setting(
        optional(text()), "the folder of train.bin and val.bin; null: in LAWA_DATA, then in data/"
    )
    vocab_size: int = setting(integer(1), "number of tokens of the vocabulary of the token files")
    dtype: str = setting(one_of(*WIDTHS), "type of the tokens in the files", before="uint16")

    def open(self, context: int) -> Blocks:
        get = "give the folder that holds train.bin and val.bin with dataset.path=DIR"
        place = find(self.name, self.path, self.name, ("train.bin",), get)
        return open_bins(place, self.name, self.vocab_size, context, self.dtype)


@dataclass(frozen=True)
class OpenWebTextSettings(BaseSettings):
    """OpenWebText as GPT-2 tokens, written by `python -m lawa_exp.data prepare openwebtext`."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    path: str | None = setting(optional(text()), "where the files are; null: in LAWA_DATA, then in data/")

    def open(self, context: int) -> Blocks:
        get = "train at once on Python's documentation with `dataset=pydocs`"
        return open_bins(find(self.name, self.path, "openwebtext", ("train.bin",), get), self.name, 50257, context)


def open_bins(folder: Path, name: str, vocab_size: int, context: int, dtype: str = "uint16") -> Blocks:
    """The .bin files of a folder; without a test.bin, val serves as both."""
    paths = {split: folder / f"{split}.bin" for split in ("train", "val", "test")}
    if not paths["val"].is_file():
        raise UserError(f"dataset={name}: {paths['val']} is missing from the folder of train.bin")
    note = ""
    if not paths["test"].is_file():
        paths["test"] = paths["val"]
        note = sole("val.bin")
    vocab_size = vocabulary_in(folder) or vocab_size
    for path in sorted(set(paths.values())):
        check_tokens(name, path, dtype, vocab_size)
    splits = {s: np.memmap(p, dtype, "r") if p.stat().st_size else np.empty(0, dtype) for s, p in paths.items()}
    files = sorted(set(paths.values()))
    return Blocks(splits, context, vocab_size, fingerprint_files(files), name, note, sampled(files))


def check_tokens(name: str, path: Path, dtype: str, vocab_size: int) -> None:
    """UserError: the file does not hold tokens of that type under `vocab_size`."""
    size = np.dtype(dtype).itemsize
    if path.stat().st_size % size:
        raise UserError(
            f"dataset={name}: {path} is not {dtype}: its size, {path.stat().st_size} bytes, is no multiple of {size}"
        )
    with path.open("rb") as file:
        problem = other_tokens(file.read(1 << 20), dtype, vocab_size)
    if problem:
        raise UserError(f"dataset={name}: {path} {problem}")
    for tokens in parts(path, dtype):
        for extreme in (int(tokens.max()), int(tokens.min())):
            if not 0 <= extreme < vocab_size:
                raise UserError(
                    f"dataset={name}: {path} holds token {extreme}, beyond its vocabulary of {vocab_size} "
                    f"(dataset.vocab_size; read as dataset.dtype={dtype})"
                )


def parts(path: Path, dtype: str) -> Iterator[np.ndarray]:
    """The tokens of a small file; of one over 64 MiB, 64 evenly spaced parts of 1 MiB."""
    if not path.stat().st_size:
        return
    tokens = np.memmap(path, dtype, "r")
    if tokens.nbytes <= WHOLE_FILE:
        yield tokens
        return
    length = PIECE // tokens.itemsize
    yield from (tokens[start : start + length] for start in np.linspace(0, len(tokens) - length, PIECES, dtype=int))
