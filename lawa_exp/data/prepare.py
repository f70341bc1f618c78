"""A corpus as nanoGPT-style token files, resumable at any moment with the same bytes.

`train.bin` and `val.bin` are little-endian uint16: the GPT-2 tokens of each document, then end_of_text, in the order
of the source. While they grow they are called `*.bin.partial`, and `progress.json` says how many documents and bytes
count; what lies behind those bytes is cut off on resume. Written, synced and renamed, it is the only commit.

Which split a document goes to is a pure function of its number (`goes_to_val`), so that it depends neither on the
order of work nor on a random state. nanoGPT draws its split with a seeded shuffle of the whole data set instead:
the share is the same, the documents are others.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lawa_exp.config import UserError
from lawa_exp.data.tokenizers import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
OPENWEBTEXT = "Skylion007/openwebtext"  # on the Hugging Face hub
SPLITS = ("train", "val")
VAL_RULE = "splitmix64(document number, from 0) < val_fraction * 2**64"
BATCH_DOCUMENTS = 2_000  # documents between two commits
BATCH_CHARACTERS = 8_000_000  # or fewer documents, where they are long: bounds the memory
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
KINDS = {".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".txt": "txt", ".parquet": "parquet"}
FLAGS = {"source_fingerprint": "the content of --source", "tokenizer_fingerprint": "the files of --tokenizer-path"}


def prepare(out: Path, source: str, tokenizer_path: str | None, val_fraction: float, workers: int) -> str:
    """Tokenize `source` into `out`, from where an earlier call stopped; returns one line on what is there now.

    source: a local path, or `owner/name` or `owner/name@revision` on the Hugging Face hub.
    Raises UserError, PrepareError (also for a full disk) and OSError; whatever it is, the same call goes on later.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction:g}: expected a number of at least 0 and below 1")
    if workers < 1:
        raise UserError(f"--workers {workers}: expected an integer of at least 1")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder, this is a file")
    source = str(Path(source).expanduser())
    tokenizer = load_tokenizer("gpt2", tokenizer_path)
    settings: dict[str, Any] = {
        "source": _source_name(source),
        "val_fraction": val_fraction,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    meta = _read_json(out / "meta.json")
    if meta is not None:
        _check_finished(out, meta, source, settings)
        return _summary(out, meta, "was done already")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            return _summary(out, _tokenize(out, source, settings, tokenizer, workers), "done")
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise PrepareError(f"{out}: no space left ({error.strerror}); make room: the same command goes on") from None


def goes_to_val(number: int, val_fraction: float) -> bool:
    """Whether document `number` (from 0, in the order of the source) is held out for validation: VAL_RULE."""
    return splitmix64(number) < val_fraction * 2**64


def splitmix64(state: int) -> int:
    """The first output of the SplitMix64 generator (Steele, Lea and Flood, 2014) at `state`: 64 well-mixed bits."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def _tokenize(out: Path, source: str, settings: dict[str, Any], tokenizer: Tokenizer, workers: int) -> dict[str, Any]:
    """Everything from the last commit to the finished files; returns the content of meta.json."""
    progress = _read_json(out / "progress.json")
    if progress is None:
        present = [name for split in SPLITS if (out / (name := f"{split}.bin")).exists()]
        if present:
            raise UserError(
                f"{out} holds {' and '.join(present)} of unknown origin (no meta.json): choose another --out"
            )
        reader = _open_source(source, None)
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
            reader = _open_source(source, saved["source_fingerprint"])
            settings["source_fingerprint"] = reader.fingerprint
            _check_settings(out / "progress.json", saved, settings)
        settings = saved
    if not progress["complete"]:
        _append_documents(out, reader, progress, tokenizer, workers)
    return _finish(out, progress, settings, tokenizer)


def _append_documents(
    out: Path, reader: LocalFiles | HubStream, progress: dict[str, Any], tokenizer: Tokenizer, workers: int
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


def _batches(reader: LocalFiles | HubStream, progress: dict[str, Any]) -> Iterator[Batch]:
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


def _finish(out: Path, progress: dict[str, Any], settings: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Give the complete files their names and write meta.json; every step may already have been done."""
    for split in SPLITS:
        partial, final = out / f"{split}.bin.partial", out / f"{split}.bin"
        if partial.exists():
            _check_size(partial, progress["bytes"][split], "progress.json")
            partial.replace(final)
        _check_size(final, progress["bytes"][split], "progress.json")
    _sync_folder(out)
    documents = {"train": progress["documents"] - progress["val_documents"], "val": progress["val_documents"]}
    meta = {
        "format_version": FORMAT_VERSION,
        "dataset": "openwebtext",
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


def _summary(out: Path, meta: dict[str, Any], state: str) -> str:
    splits = [f"{s}.bin {meta['tokens'][s]:,} tokens of {meta['documents'][s]:,} documents" for s in SPLITS]
    hint = "" if meta["documents"]["val"] else " (no document fell to val: a larger --val-fraction holds some out)"
    return f"{out}: {state}; {', '.join(splits)}{hint}"


def _check_settings(path: Path, saved: dict[str, Any], settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        if saved.get(key) != value:
            what = FLAGS.get(key, f"--{key.replace('_', '-')}")
            change = "has changed" if key in FLAGS else f"was {saved.get(key)}, now it is {value}"
            raise UserError(f"{path}: {what} {change}; give the settings that it was begun with, or another --out")


def _check_finished(out: Path, meta: dict[str, Any], source: str, settings: dict[str, Any]) -> None:
    """Whether the finished files are what is asked for; a source that is no longer there is not missed."""
    if Path(source).exists():
        root, _, files = _find_files(source)
        settings = settings | {"source_fingerprint": _files_fingerprint(root, files)}
    _check_settings(out / "meta.json", meta, settings)
    for split in SPLITS:
        _check_size(out / f"{split}.bin", 2 * meta["tokens"][split], "meta.json")
    for name in ("progress.json", "prepare.lock"):  # of a process killed just before its end
        if (out / name).exists():
            (out / name).unlink()


def _check_size(path: Path, size: int, record: str) -> None:
    found = path.stat().st_size if path.exists() else None
    if found != size:
        state = "is missing" if found is None else f"has {found:,} bytes where {record} says {size:,}"
        raise PrepareError(f"{path} {state}: delete the folder {path.parent} and prepare it again")


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


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        version = content["format_version"]
    except (ValueError, KeyError, TypeError):
        raise PrepareError(f"{path} is damaged: delete the folder {path.parent} and prepare it again") from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this program writes {FORMAT_VERSION}: choose another --out"
        )
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one step: it holds the old content or the new, on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One process per folder; the system frees the lock of a killed process."""
    path = out / "prepare.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is preparing this folder") from None
        try:
            yield
        finally:
            if not (out / "progress.json").exists():  # finished, or nothing begun
                path.unlink(missing_ok=True)


def _source_name(source: str) -> str:
    """How progress.json and meta.json call a source: `owner/name` of the hub, the last part of a local path."""
    return source if _on_hub(source) else Path(source).resolve().name


def _on_hub(source: str) -> bool:
    return (
        not Path(source).exists()
        and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@\S+)?", source, re.ASCII) is not None
        and _kind(Path(source)) is None
    )


def _kind(path: Path) -> str | None:
    return next((kind for suffix, kind in KINDS.items() if path.name.endswith(suffix)), None)


def _open_source(source: str, fingerprint: str | None) -> LocalFiles | HubStream:
    """The reader of a source; `fingerprint`: of the content begun with, which a hub source then reads again."""
    if _on_hub(source):
        return _open_hub(source, fingerprint)
    root, kind, files = _find_files(source)
    fingerprint = _files_fingerprint(root, files)
    if kind == "parquet":
        with _reading(source):
            return HubStream(root.name, fingerprint, _stream("parquet", data_files=[str(p) for p in files]))
    return LocalFiles(root.name, fingerprint, kind, files)


def _find_files(source: str) -> tuple[Path, str, list[Path]]:
    """(the source resolved, the one kind of its files, the files in the order of their names)."""
    root = Path(source).resolve()
    if not root.exists():
        raise UserError(f"--source {source}: no such file or folder, and not a name on the hub like {OPENWEBTEXT}")
    candidates = sorted(root.rglob("*")) if root.is_dir() else [root]
    files = [p for p in candidates if p.is_file() and _kind(p) and not _hidden(p, root)]
    kinds = sorted({str(_kind(p)) for p in files})
    if len(kinds) != 1:
        found = f"holds {' and '.join(kinds)} files" if kinds else "holds none"
        raise UserError(f"--source {source} {found}: expected files of one kind, of {', '.join(KINDS)}")
    return root, kinds[0], files


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _files_fingerprint(root: Path, files: list[Path]) -> str:
    """Names and sizes of all files, and how the first hundred begin: enough to notice that they were changed."""
    digest = hashlib.sha256()
    for number, path in enumerate(files):
        name = path.relative_to(root).as_posix() if path != root else path.name
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        if number < 100:
            with path.open("rb") as file:
                digest.update(file.read(2**16))
    return digest.hexdigest()


def _open_hub(source: str, commit: str | None) -> HubStream:
    """A data set of the Hugging Face hub, read at one commit: the newest when begun, the same ever after."""
    _import_datasets()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, revision = source.partition("@")
    hub = HfApi()
    with _reading(f"{source} from the Hugging Face hub"):
        try:
            commit = commit or str(hub.dataset_info(name, revision=revision or None).sha)
            return HubStream(source, commit, _stream(name, revision=commit))
        except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
            raise UserError(f"--source {source}: neither a local path nor a data set on the Hugging Face hub") from None
        except RuntimeError as error:  # "Dataset scripts are no longer supported": the hub keeps a parquet form of it
            if "script" not in str(error) or revision:
                raise
            commit = str(hub.dataset_info(name, revision="refs/convert/parquet").sha)
            return HubStream(source, commit, _stream(name, revision=commit))


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever the packages for parquet and the hub raise, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise PrepareError(f"cannot read {what} ({_one_line(error)}); the same command goes on later") from None


def _stream(path: str, **where: Any) -> Any:
    datasets = _import_datasets()
    datasets.disable_progress_bars()
    return datasets.load_dataset(path, split="train", streaming=True, **where)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("this --source needs the package datasets: pip install 'lawa_exp[prepare]'") from None
    return datasets


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _read_jsonl(path: Path, offset: int) -> Iterator[tuple[Any, int]]:
    """(field `text`, byte offset behind the line) of each line from `offset` (of the uncompressed bytes) on."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            file.seek(offset)
            for line in file:
                start, offset = offset, offset + len(line)
                if line.strip():
                    yield _text_field(line, path, start), offset
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise PrepareError(f"{path} is damaged ({_one_line(error)})") from None


def _text_field(line: bytes, path: Path, start: int) -> Any:
    try:
        return json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: the line at byte {start} is not a JSON object with the field `text`") from None


def _read_txt(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None


class PrepareError(RuntimeError):
    """Something failed that is not the user's mistake: one readable line, exit code 1."""


@dataclass(frozen=True)
class Batch:
    """Documents `first`, `first + 1`, ... of the source, and the source's position behind them (JSON)."""

    first: int
    texts: list[str]
    position: Any


class LocalFiles:
    """The documents of .jsonl, .jsonl.gz (a line each) or .txt files (a file each), files in the order of their names.

    A position is [number of the file, byte offset in it].
    """

    def __init__(self, name: str, fingerprint: str, kind: str, files: list[Path]):
        self.name, self.fingerprint = name, fingerprint
        self.total = len(files) if kind == "txt" else None
        self._kind, self._files, self._position = kind, files, (0, 0)

    def position(self) -> list[int]:
        """Where the document after the last one yielded begins."""
        return list(self._position)

    def documents(self, position: list[int] | None, done: int) -> Iterator[Any]:
        """The texts from `position` on."""
        first, start = position or (0, 0)
        for number in range(first, len(self._files)):
            path = self._files[number]
            if self._kind == "txt":
                self._position = (number + 1, 0)
                yield _read_txt(path)
                continue
            for text, offset in _read_jsonl(path, start if number == first else 0):
                self._position = (number, offset)
                yield text


class HubStream:
    """The documents of a data set streamed by the package `datasets` (from the hub, or from local parquet files).

    A position is that package's own state, which goes on in the middle of a file, with the version that wrote it;
    another version counts the documents instead.
    """

    def __init__(self, name: str, fingerprint: str, stream: Any):
        self.name, self.fingerprint, self._stream = name, fingerprint, stream
        split = (stream.info.splits or {}).get("train")
        self.total = (split.num_examples or None) if split else None

    def position(self) -> dict[str, Any]:
        """The state behind the last document yielded."""
        return {"version": _import_datasets().__version__, "state": self._stream.state_dict()}

    def documents(self, position: dict[str, Any] | None, done: int) -> Iterator[Any]:
        """The texts from `position` on, which lies behind `done` documents."""
        with _reading(self.name):
            if position and position["version"] == _import_datasets().__version__:
                self._stream.load_state_dict(position["state"])
            elif done:
                self._stream = self._stream.skip(done)
            for example in self._stream:
                yield example.get("text")
