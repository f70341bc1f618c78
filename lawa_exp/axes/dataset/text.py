"""Text as data: the documentation of CPython 3.11.7, or any UTF-8 file or folder, as bytes, GPT-2 or GPT-NeoX BPE."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lawa_exp.axes.dataset import cache
from lawa_exp.axes.dataset.base import BaseSettings
from lawa_exp.axes.dataset.blocks import Blocks
from lawa_exp.axes.dataset.documents import open_documents
from lawa_exp.axes.dataset.encodings import markup_of, text_of
from lawa_exp.axes.dataset.layouts import files_at, is_pattern
from lawa_exp.axes.dataset.places import find, is_hidden, sole
from lawa_exp.axes.dataset.tokenizers import NAMES, Tokenizer, dropped, load_tokenizer
from lawa_exp.config.rules import boolean, one_of, optional, plain_name, setting, text
from lawa_exp.system.errors import UserError

PYDOCS = Path(__file__).with_name("pydocs.txt.xz")  # README.md here says what it was made from and how
HELD_OUT = 0.05  # of the text: the last twentieth is test, the one before it val
SPLIT_FILES = {"train": ("train.txt",), "val": ("val.txt", "valid.txt", "validation.txt"), "test": ("test.txt",)}


@dataclass(frozen=True)
class PydocsSettings(BaseSettings):
    """The documentation of CPython 3.11.7 (its `pydoc_data.topics`, topics in alphabetical order), embedded."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    tokenizer: str = setting(one_of(*NAMES), "bytes, GPT-2's BPE, GPT-NeoX's, or a tokenizer.json", "bytes", "bytes")
    tokenizer_path: str | None = setting(
        optional(text()), "a tokenizer.json, or a folder that holds the tokenizer's files", None, None
    )

    def open(self, context: int) -> Blocks:
        return _blocks(*read_pydocs(), load_tokenizer(self.tokenizer, self.tokenizer_path), context, self.name)


@dataclass(frozen=True)
class TextSettings(BaseSettings):
    """A UTF-8 file, or a folder: train.txt, valid.txt, test.txt where it holds them, else all its files by name.

    A single text is cut: the last twentieth is test, the one before it val. With `column` the files hold rows (see
    `documents`), and `path` may be a pattern. markup: JSON, tables and HTML count as text.
    """

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    path: str | None = setting(optional(text()), "where the files are; null: in LAWA_DATA, then in data/")
    folder: str | None = setting(optional(text()), "the folder below LAWA_DATA that holds the files")
    column: str | None = setting(
        optional(text()),
        "of rows (JSON lines, Parquet, CSV) the column of text; null: it is plain text",
        before=None,
    )
    tokenizer: str = setting(one_of(*NAMES), "bytes, GPT-2's BPE, GPT-NeoX's, or a tokenizer.json")
    tokenizer_path: str | None = setting(
        optional(text()), "a tokenizer.json, or a folder that holds the tokenizer's files"
    )
    markup: bool = setting(boolean(), "whether JSON, tables and HTML count as text", before=False)

    def open(self, context: int) -> Blocks:
        get = "give a UTF-8 file or a folder with dataset.path=PATH, or train at once with dataset=pydocs"
        is_given = self.column and self.path and is_pattern(self.path)
        place = Path(str(self.path)) if is_given else find(self.name, self.path, self.folder, (), get)
        tokenizer = load_tokenizer(self.tokenizer, self.tokenizer_path)
        if self.column:
            return open_documents(files_at(place), self.column, tokenizer, context, self.name)
        return _blocks(*read_splits(place, self.markup), tokenizer, context, self.name)


def read_pydocs() -> tuple[dict[str, str], str]:
    """The splits of the embedded text, and how they were cut. UserError: Python without lzma."""
    try:
        import lzma
    except ImportError:
        raise UserError(
            "dataset=pydocs: this Python was built without lzma, which its text is compressed with; take a Python that "
            "has it, or give a text with dataset=text dataset.path=PATH"
        ) from None

    return _cut_splits(lzma.decompress(PYDOCS.read_bytes()).decode())


def read_splits(place: Path, markup: bool = False) -> tuple[dict[str, str], str]:
    """The splits of a file or folder, and how they were made. markup: whether JSON and the like count as text."""
    if not place.is_dir():
        return _cut_splits(_texts([place], markup)[0])
    named = {s: next((place / n for n in names if (place / n).is_file()), None) for s, names in SPLIT_FILES.items()}
    if named["train"] is not None:
        paths = {s: p for s, p in named.items() if p is not None}
        return _named_splits(dict(zip(paths, _texts(list(paths.values()), markup), strict=True)))
    files = sorted(p for p in place.rglob("*") if p.is_file() and not is_hidden(p, place))
    if not files:
        raise UserError(f"dataset.path={place}: the folder holds no file")
    return _cut_splits("\n".join(_texts(files, markup)))


def _texts(paths: Sequence[Path], markup: bool) -> list[str]:
    """The texts of files. UserError: all of them are data in another form, and `markup` does not allow that."""
    texts = [text_of(path) for path in paths]
    kinds = {markup_of(path, text) for path, text in zip(paths, texts, strict=True)} if not markup else {None}
    if None not in kinds:
        raise UserError(
            f"dataset.path={paths[0]}: it is {kinds.pop()}, not text; give the column of the text in its rows with "
            "dataset.column=NAME, or dataset=text dataset.markup=true takes it as it stands"
        )
    return texts


def _named_splits(texts: dict[str, str]) -> tuple[dict[str, str], str]:
    held_out = [s for s in ("val", "test") if s in texts]
    if not held_out:
        return _cut_splits(texts["train"])
    if len(held_out) == 2:
        return texts, ""
    note = sole(held_out[0])
    return {"train": texts["train"], "val": texts[held_out[0]], "test": texts[held_out[0]]}, note


def _cut_splits(content: str) -> tuple[dict[str, str], str]:
    test = len(content) - int(HELD_OUT * len(content))
    val = test - int(HELD_OUT * len(content))
    splits = {"train": content[:val], "val": content[val:test], "test": content[test:]}
    return splits, "cut by place: the first 90% is train, the next 5% val, the last 5% test"


def _blocks(splits: dict[str, str], note: str, tokenizer: Tokenizer, context: int, name: str) -> Blocks:
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for split in ("train", "val", "test"):
        digest.update(hashlib.sha256(splits[split].encode()).digest())
    fingerprint = digest.hexdigest()
    tokens = {s: _encoded(t, tokenizer, f"{fingerprint}-{s}") for s, t in splits.items()}
    note = "; ".join(filter(None, (note, dropped(tokenizer))))
    return Blocks(tokens, context, tokenizer.vocab_size, fingerprint, name, note)


def _encoded(content: str, tokenizer: Tokenizer, key: str) -> np.ndarray:
    """The tokens of a text; those of a slow tokenizer are kept."""
    return tokenizer.encode(content) if tokenizer.name == "bytes" else kept(key, lambda: tokenizer.encode(content))


def kept(key: str, encode: Callable[[], np.ndarray]) -> np.ndarray:
    """What `encode` gives, from the cache where that has `key`."""
    tokens = cache.load(key)
    if tokens is None:
        tokens = encode()
        cache.save(key, tokens)
    return tokens
