"""Documents in a column of a table: JSON lines, Parquet, CSV, or what the package datasets keeps, as tokens.

They are read and tokenized some at a time, and the tokens kept in the cache: neither lies in memory as a whole.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lawa_exp.axes.dataset import cache
from lawa_exp.axes.dataset.blocks import WHOLE_FILE, Blocks, fingerprint_files, sampled
from lawa_exp.axes.dataset.layouts import Files
from lawa_exp.axes.dataset.places import sole
from lawa_exp.axes.dataset.tables import columns_of, listed, parts_of
from lawa_exp.axes.dataset.tokenizers import Tokenizer, dropped
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import size_text

RULE = 1  # goes up where the tokens of the same files change
HELD_OUT = 0.05  # of the tokens, val and test each, where the data have only train
TEXT = "text"  # the usual name of the column
BETWEEN = "\n\n"  # documents, where the tokenizer has no end of text


def open_documents(source: Files, column: str | None, tokenizer: Tokenizer, context: int, name: str) -> Blocks:
    """Blocks of the documents in `column` (None: `text`, else the sole column of text), one after another.

    Behind each is the tokenizer's end of text; of one that has none, a blank line. Documents of blanks alone
    are left out. UserError names the file, and the columns where there is no such one.
    """
    column = column or _column(source)
    head = f"documents {RULE}\0{column}\0{tokenizer.fingerprint}\0{tokenizer.end_of_text}"
    digest, whole, said = hashlib.sha256(head.encode()), {}, []
    for split, files in source.splits.items():
        content = _content(files)
        digest.update(f"{split}\0{content}".encode())
        tokens, ends = _tokens(files, content, column, tokenizer, head)
        if not len(ends):
            raise UserError(f"dataset.path={files[0]}: no document in column {column} of {split} ({_names(files)})")
        whole[split] = tokens, ends
        of = f" of {split}" if len(source.splits) > 1 else ""
        said.append(f"{len(ends):,} documents{of} ({_names(files)})")
    end = f"token {tokenizer.end_of_text}" if tokenizer.end_of_text is not None else "a blank line"
    splits, cut = _splits(whole, name)
    note = "; ".join(
        filter(None, (f"column {column}: {', '.join(said)}", f"{end} ends each", source.note, dropped(tokenizer), cut))
    )
    files = [file for files in source.splits.values() for file in files]
    return Blocks(splits, context, tokenizer.vocab_size, digest.hexdigest(), name, note, sampled(files))


def _content(files: Sequence[Path]) -> str:
    """A hash of the files' bytes, and which of them are .tsv: a .csv of the same bytes has other rows."""
    tabs = [number for number, file in enumerate(files) if file.suffix == ".tsv"]
    return fingerprint_files(list(files)) + (f"\0tabs {tabs}" if tabs else "")


def _column(source: Files) -> str:
    file = source.splits["train"][0]
    there = columns_of(file, f"dataset.path={file}")
    if not there:
        raise UserError(f"dataset.path={file}: no row is in it")
    texts = [name for name, is_text in there.items() if is_text]
    if TEXT in texts or len(texts) == 1:
        return TEXT if TEXT in texts else texts[0]
    if texts:
        raise UserError(f"dataset.column is missing: {file} has several columns of text, {listed(texts)}; give one")
    raise UserError(
        f"dataset.path={file}: no column holds text; its columns are {listed(list(there))}; images are trained on from "
        "files, dataset=imagenet dataset.path=DIR with train/CLASS/*.png"
    )


def _tokens(
    files: Sequence[Path], content: str, column: str, tokenizer: Tokenizer, head: str
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens of all documents, where each ends), from the cache where that has them. content: see `_content`."""
    facts = [(p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in files if p.stat().st_size > WHOLE_FILE]
    key = hashlib.sha256(f"{head}\0{content}\0{facts}".encode()).hexdigest()
    ends = array("q")

    def encoded() -> Iterator[np.ndarray]:
        size = sum(p.stat().st_size for p in files)
        if size > WHOLE_FILE:
            print(f"tokenizing {size_text(size)} in {_names(files)}, once", file=sys.stderr, flush=True)
        del ends[:]
        count = 0
        for texts in _texts(files, column):
            part = list(_encoded(texts, tokenizer))
            for tokens in part:
                count += len(tokens)
                ends.append(count)
            yield np.concatenate([np.empty(0, tokenizer.dtype), *part])
        cache.save(f"{key}-ends", np.array(ends, np.int64))

    tokens = cache.kept_parts(key, tokenizer.dtype, encoded)
    where = np.array(ends, np.int64) if ends else cache.load(f"{key}-ends")
    if where is None:
        for _ in encoded():
            pass
        where = np.array(ends, np.int64)
    return tokens, where


def _texts(files: Sequence[Path], column: str) -> Iterator[list[str]]:
    """The documents in order, some at a time. UserError names the row that has no text."""
    for file in files:
        row, where = 0, f"dataset.path={file}"
        for part in parts_of(file, where, [column]):
            texts = part[column]
            wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
            if wrong is not None:
                raise UserError(f"{where}: row {row + wrong + 1:,} has no text in column {column}")
            row += len(texts)
            yield [text for text in texts if text.strip()]


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of each text, with what stands behind it."""
    if tokenizer.end_of_text is None:
        texts, end = [text + BETWEEN for text in texts], np.empty(0, tokenizer.dtype)
    else:
        end = np.array([tokenizer.end_of_text], tokenizer.dtype)
    each = tokenizer.encode_each(texts) if tokenizer.encode_each else map(tokenizer.encode, texts)
    return (np.concatenate([tokens, end]) for tokens in each)


def _splits(whole: Mapping[str, tuple[np.ndarray, np.ndarray]], name: str) -> tuple[dict[str, np.ndarray], str]:
    """Tokens by split, and how they were cut where the data have no val and no test."""
    tokens = {split: of for split, (of, _) in whole.items()}
    if len(whole) == 3:
        return tokens, ""
    if len(whole) == 2:
        held_out = next(split for split in whole if split != "train")
        return {"train": tokens["train"], "val": tokens[held_out], "test": tokens[held_out]}, sole(held_out)
    train, ends = whole["train"]
    starts = np.concatenate([[0], ends])  # and where the last ends
    share = int(HELD_OUT * len(train))
    val, test = (int(starts[starts.searchsorted(len(train) - n * share)]) for n in (2, 1))
    if not val < test < len(train):
        raise UserError(
            f"dataset={name}: val and test cannot be cut from {len(ends):,} documents: one document is more than a "
            "twentieth of the tokens, at the end; give train, val and test as files of their own"
        )
    return {"train": train[:val], "val": train[val:test], "test": train[test:]}, (
        "cut by place: the documents that begin in the last 5% of the tokens are test, in the 5% before them val"
    )


def _names(files: Sequence[Path]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
