"""A corpus as nanoGPT-style token files, resumable at any moment with the same bytes.

`train.bin` and `val.bin` are little-endian uint16: the tokens of each document, by the tokenizer of the corpus, then
end_of_text, in the order of the source. While they grow they are called `*.bin.partial`, and `progress.json` says how
many documents and bytes count; what lies behind those bytes is cut off on resume. Written, synced and renamed, it is
the only commit.

Which split a document goes to is a pure function of its number (`goes_to_val`), so that it depends neither on the
order of work nor on a random state. nanoGPT draws its split with a seeded shuffle of the whole data set instead:
the share is the same, the documents are others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict, cast

import numpy as np

from lawa_exp.axes.dataset.sources import (
    CORPORA,
    HubStream,
    LocalFiles,
    files_fingerprint,
    find_files,
    open_source,
    source_name,
)
from lawa_exp.axes.dataset.tokenizers import END_OF_TEXT, Tokenizer, load_tokenizer
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import DISK_FULL, folder_for, locked, read_json, sync, write_text_atomically
from lawa_exp.system.hashing import hash_of

FORMAT_VERSION = 1
SPLITS = ("train", "val")
VAL_RULE = "splitmix64(document number, from 0) < val_fraction * 2**64"
BATCH_DOCUMENTS = 2_000  # documents between two commits
BATCH_CHARACTERS = 8_000_000  # or fewer documents, where they are long: bounds the memory
FLAGS = {"source_fingerprint": "the content of --source", "tokenizer_fingerprint": "the files of --tokenizer-path"}


class Settings(TypedDict, total=False):
    """What the bytes depend on. The fingerprint of the source is known once that is open."""

    source: str
    val_fraction: float
    tokenizer_fingerprint: str
    source_fingerprint: str


class Progress(TypedDict):
    """progress.json: what is committed. position: the source's own, behind the last document."""

    format_version: int
    settings: Settings
    documents: int
    val_documents: int
    bytes: dict[str, int]  # of each split
    position: object
    complete: bool


class Meta(Settings):
    """meta.json: what the finished files hold. documents, tokens: of each split."""

    format_version: int
    dataset: str
    tokenizer: str
    vocab_size: int
    end_of_text: int | None
    documents: dict[str, int]
    tokens: dict[str, int]
    val_rule: str


def prepare(
    out: Path, source: str, tokenizer_path: str | None, val_fraction: float, workers: int, corpus: str = "openwebtext"
) -> str:
    """Tokenize `source` into `out`, from where an earlier call stopped; returns one line on what is there now.

    source: a local path, or `owner/name` or `owner/name@revision` on the Hugging Face hub. corpus: a name in CORPORA.
    Raises UserError, Failed (also for a full disk) and OSError; whatever it is, the same call goes on later.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction:g}: expected a number of at least 0 and below 1")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder, this is a file")
    source = str(Path(source).expanduser())
    tokenizer = load_tokenizer(CORPORA[corpus][1], tokenizer_path)
    if tokenizer.vocab_size > 2**16:
        raise UserError(
            f"--tokenizer-path {tokenizer_path}: a vocabulary of {tokenizer.vocab_size:,}; tokens are kept as 16 bits"
        )
    if tokenizer.end_of_text is None:
        raise UserError(f"--tokenizer-path {tokenizer_path}: expected a vocabulary with {END_OF_TEXT}")
    settings: Settings = {
        "source": source_name(source),
        "val_fraction": val_fraction,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    meta = cast("Meta | None", _read_json(out / "meta.json"))  # as `_finish` wrote it
    if meta is not None:
        if meta["dataset"] != corpus:
            raise UserError(f"--out {out} holds {meta['dataset']}: choose another folder for {corpus}")
        _check_finished(out, meta, source, settings)
        unread = "" if Path(source).exists() else f", {source} was not read"
        return _summary(out, meta, f"was done already{unread}")
    try:
        with folder_for(out), _locked(out):
            return _summary(out, _tokenize(out, source, settings, tokenizer, workers, corpus), "done")
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise Failed(f"{out}: no space left ({error.strerror}); make room: the same command goes on") from None


def goes_to_val(number: int, val_fraction: float) -> bool:
    """Whether document `number` (from 0, in the order of the source) is held out for validation: VAL_RULE."""
    return int(hash_of(number)) < val_fraction * 2**64


def _tokenize(out: Path, source: str, settings: Settings, tokenizer: Tokenizer, workers: int, corpus: str) -> Meta:
    """Everything from the last commit to the finished files; returns the content of meta.json."""
    progress = cast("Progress | None", _read_json(out / "progress.json"))  # as it was written below
    if progress is None:
        present = [name for split in SPLITS if (out / (name := f"{split}.bin")).exists()]
        if present:
            raise UserError(
                f"{out} holds {' and '.join(present)} of unknown origin (no meta.json): choose another --out"
            )
        reader = open_source(source, None)
        settings["source_fingerprint"] = reader.fingerprint
        progress = {
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "documents": 0,
            "val_documents": 0,
            "bytes": {split: 0 for split in SPLITS},
            "position": None,
            "complete": False,
        }
        _write_json(out / "progress.json", progress)
    else:
        saved = progress["settings"]
        _check_settings(out / "progress.json", saved, settings)
        if not progress["complete"]:
            reader = open_source(source, saved["source_fingerprint"])
            settings["source_fingerprint"] = reader.fingerprint
            _check_settings(out / "progress.json", saved, settings)
        settings = saved
    if not progress["complete"]:
        _append_documents(out, reader, progress, tokenizer, workers)
    return _finish(out, progress, settings, tokenizer, corpus)


def _append_documents(
    out: Path, reader: LocalFiles | HubStream, progress: Progress, tokenizer: Tokenizer, workers: int
) -> None:
    """Encode and append what the source still has, committing after each batch; `progress` is kept up to date."""
    from tqdm import tqdm

    val_fraction = progress["settings"]["val_fraction"]
    files = {split: _open_partial(out, split, progress["bytes"][split]) for split in SPLITS}
    pending: deque[tuple[Batch, Future[dict[str, np.ndarray]]]] = deque()
    pool = ThreadPoolExecutor(workers)  # tiktoken works outside the interpreter lock
    begun, tokens_before = time.monotonic(), sum(progress["bytes"].values()) // 2
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=reader.total,
        initial=progress["documents"],
        unit=" documents",
        unit_scale=True,
        mininterval=0.2 if terminal else 10,
        file=sys.stderr,
    )

    def commit_first() -> None:
        batch, encoded = pending.popleft()
        for split, tokens in encoded.result().items():
            files[split].write(tokens.astype("<u2").tobytes())
            files[split].flush()
            os.fsync(files[split].fileno())
            progress["bytes"][split] += 2 * len(tokens)
        progress["documents"] += len(batch.texts)
        progress["val_documents"] += sum(goes_to_val(batch.first + n, val_fraction) for n in range(len(batch.texts)))
        progress["position"] = batch.position
        _write_json(out / "progress.json", progress)
        total = sum(progress["bytes"].values()) // 2
        rate = (total - tokens_before) / max(time.monotonic() - begun, 1e-9)
        bar.set_postfix_str(f"{total:,} tokens, {rate:,.0f} tokens/s", refresh=False)
        bar.update(len(batch.texts))

    try:
        for batch in _batches(reader, progress):
            pending.append((batch, pool.submit(_encode, batch, tokenizer, val_fraction)))
            if len(pending) > workers:
                commit_first()
        while pending:
            commit_first()
        if progress["documents"] == 0:
            raise UserError(f"--source {progress['settings']['source']} holds no document")
        progress["complete"] = True
        _write_json(out / "progress.json", progress)
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
        for file in files.values():
            file.close()


def _batches(reader: LocalFiles | HubStream, progress: Progress) -> Iterator[Batch]:
    """The documents that are not committed yet, in batches of BATCH_DOCUMENTS or BATCH_CHARACTERS."""
    first, characters = progress["documents"], 0
    texts: list[str] = []
    for text in reader.documents(progress["position"], progress["documents"]):
        if not isinstance(text, str):
            number = first + len(texts)
            raise UserError(f"--source {reader.name}: document {number} has no text in its field `text`")
        texts.append(text)
        characters += len(text)
        if len(texts) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield Batch(first, texts, reader.position())
            first, texts, characters = first + len(texts), [], 0
    if texts:
        yield Batch(first, texts, reader.position())


def _encode(batch: Batch, tokenizer: Tokenizer, val_fraction: float) -> dict[str, np.ndarray]:
    """Split -> uint16 [tokens] of its documents, each followed by end_of_text."""
    end = np.array([tokenizer.end_of_text], np.uint16)
    parts: dict[str, list[np.ndarray]] = {split: [end[:0]] for split in SPLITS}
    for number, text in enumerate(batch.texts, batch.first):
        parts["val" if goes_to_val(number, val_fraction) else "train"] += [tokenizer.encode(text), end]
    return {split: np.concatenate(parts[split]) for split in SPLITS}


def _finish(out: Path, progress: Progress, settings: Settings, tokenizer: Tokenizer, corpus: str) -> Meta:
    """Give the complete files their names and write meta.json; every step may already have been done."""
    for split in SPLITS:
        partial, final = out / f"{split}.bin.partial", out / f"{split}.bin"
        if partial.exists():
            _check_size(partial, progress["bytes"][split], "progress.json")
            partial.replace(final)
        _check_size(final, progress["bytes"][split], "progress.json")
    sync(out)
    documents = {"train": progress["documents"] - progress["val_documents"], "val": progress["val_documents"]}
    meta: Meta = {
        "format_version": FORMAT_VERSION,
        "dataset": corpus,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "documents": documents,
        "tokens": {split: progress["bytes"][split] // 2 for split in SPLITS},
        "val_rule": VAL_RULE,
        **settings,
    }
    _write_json(out / "meta.json", meta)
    (out / "progress.json").unlink()
    return meta


def _summary(out: Path, meta: Meta, state: str) -> str:
    splits = [f"{s}.bin {meta['tokens'][s]:,} tokens of {meta['documents'][s]:,} documents" for s in SPLITS]
    hint = "" if meta["documents"]["val"] else " (no document fell to val: a larger --val-fraction holds some out)"
    return f"{out}: {state}; {', '.join(splits)}{hint}"


def _check_settings(path: Path, saved: Mapping[str, object], settings: Settings) -> None:
    for key, value in settings.items():
        if saved.get(key) != value:
            what = FLAGS.get(key, f"--{key.replace('_', '-')}")
            change = "has changed" if key in FLAGS else f"was {saved.get(key)}, now it is {value}"
            raise UserError(f"{path}: {what} {change}; give the settings that it was begun with, or another --out")


def _check_finished(out: Path, meta: Meta, source: str, settings: Settings) -> None:
    """Whether the finished files are those of this command; a source that is no longer there is not missed."""
    if Path(source).exists():
        root, _, files = find_files(source)
        settings = {**settings, "source_fingerprint": files_fingerprint(root, files)}
    _check_settings(out / "meta.json", meta, settings)
    for split in SPLITS:
        _check_size(out / f"{split}.bin", 2 * meta["tokens"][split], "meta.json")
    for name in ("progress.json", "prepare.lock"):  # of a process killed just before its end
        if (out / name).exists():
            (out / name).unlink()


def _check_size(path: Path, size: int, record: str) -> None:
    actual = path.stat().st_size if path.exists() else None
    if actual != size:
        state = "is missing" if actual is None else f"has {actual:,} bytes where {record} says {size:,}"
        raise Failed(f"{path} {state}: delete the folder {path.parent} and prepare it again")


def _open_partial(out: Path, split: str, size: int) -> BinaryIO:
    """The growing file of a split, cut back to the `size` bytes that are committed, at its end."""
    path = out / f"{split}.bin.partial"
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        _check_size(path, size, "progress.json")
    file = path.open("r+b" if found else "wb")
    file.truncate(size)
    file.seek(size)
    return file


def _read_json(path: Path) -> dict[str, object] | None:
    if not path.exists():
        return None
    try:
        content: dict[str, object] = read_json(path)
        version = content["format_version"]
    except (ValueError, KeyError, TypeError):
        raise Failed(f"{path} is damaged: delete the folder {path.parent} and prepare it again") from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this program writes {FORMAT_VERSION}: choose another --out"
        )
    return content


def _write_json(path: Path, content: Progress | Meta) -> None:
    write_text_atomically(path, json.dumps(content, indent=1) + "\n")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One process per folder."""
    path = out / "prepare.lock"
    with locked(path, f"--out {out}"):
        try:
            yield
        finally:
            if not (out / "progress.json").exists():  # finished, or nothing begun
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Batch:
    """Documents `first`, `first + 1`, ... of the source, and the source's position behind them (JSON)."""

    first: int
    texts: list[str]
    position: object
