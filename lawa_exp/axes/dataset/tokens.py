"""Tokens already on the disk: nanoGPT-style uint16 `train.bin` and `val.bin`, memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lawa_exp.axes.dataset.base import BaseSettings
from lawa_exp.axes.dataset.blocks import Blocks, fingerprint_files, pieces, sampled
from lawa_exp.axes.dataset.places import find, sole
from lawa_exp.axes.dataset.sources import CORPORA
from lawa_exp.config.rules import integer, optional, plain_name, setting, text
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json


@dataclass(frozen=True)
class TokensSettings(BaseSettings):
    """`path` holds train.bin, val.bin and, if there is one, test.bin; `vocab_size` is checked against the model's."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    path: str | None = setting(
        optional(text()), "the folder of train.bin and val.bin; null: in LAWA_DATA, then in data/"
    )
    vocab_size: int = setting(integer(1), "number of tokens of the vocabulary of the token files")

    def open(self, context: int) -> Blocks:
        get = "give the folder that holds train.bin and val.bin with dataset.path=DIR"
        get = f"{_prepare(self.name)}, or {get}" if self.name in CORPORA else get
        place = find(self.name, self.path, self.name, ("train.bin",), get)
        return open_bins(place, self.name, self.vocab_size, context)


@dataclass(frozen=True)
class OpenWebTextSettings(BaseSettings):
    """OpenWebText as GPT-2 tokens, written by `python -m lawa_exp.data prepare openwebtext`."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    path: str | None = setting(optional(text()), "where the files are; null: in LAWA_DATA, then in data/")

    def open(self, context: int) -> Blocks:
        get = f"{_prepare('openwebtext')}, or train at once on Python's documentation with `dataset=pydocs`"
        return open_bins(find(self.name, self.path, "openwebtext", ("train.bin",), get), self.name, 50257, context)


def _prepare(corpus: str) -> str:
    return f"prepare it with `python -m lawa_exp.data prepare {corpus} --out data/{corpus}`"


def open_bins(folder: Path, name: str, vocab_size: int, context: int) -> Blocks:
    """The .bin files of a folder; without a test.bin, val serves as both."""
    paths = {split: folder / f"{split}.bin" for split in ("train", "val", "test")}
    if not paths["val"].is_file():
        raise UserError(f"dataset={name}: {paths['val']} is missing from the folder of train.bin")
    note = ""
    if not paths["test"].is_file():
        paths["test"] = paths["val"]
        note = sole("val.bin")
    for path in paths.values():
        if path.stat().st_size % 2:
            raise UserError(f"dataset={name}: {path} is not uint16: its size, {path.stat().st_size} bytes, is odd")
    if (folder / "meta.json").is_file():
        vocab_size = _vocab_size(folder / "meta.json")
    for path in sorted(set(paths.values())):
        highest = max((int(np.frombuffer(p, np.uint16).max()) for p in pieces(path) if p), default=0)
        if highest >= vocab_size:
            raise UserError(f"dataset={name}: {path} holds token {highest}, beyond its vocabulary of {vocab_size}")
    splits = {s: np.memmap(p, np.uint16, "r") if p.stat().st_size else np.empty(0, np.uint16) for s, p in paths.items()}
    files = sorted(set(paths.values()))
    return Blocks(splits, context, vocab_size, fingerprint_files(files), name, note, sampled(files))


def _vocab_size(meta: Path) -> int:
    try:
        return int(read_json(meta)["vocab_size"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{meta} is damaged: expected a JSON object with vocab_size") from None
