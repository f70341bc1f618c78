"""Where a corpus comes from: local .jsonl, .txt and .parquet files, or a data set streamed from the Hugging Face hub.

A source gives its documents from any position on, so that preparing it can be resumed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lawa_exp.axes.dataset.places import is_hidden
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import LARGE, lines_in, read_small

if TYPE_CHECKING:
    from datasets import IterableDataset

CORPORA = {  # name: (where the Hugging Face hub has it, its tokenizer)
    "openwebtext": ("Skylion007/openwebtext", "gpt2"),
    "pile": ("EleutherAI/the_pile_deduplicated", "neox"),
}
KINDS = {".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".txt": "txt", ".parquet": "parquet"}


def source_name(source: str) -> str:
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


def open_source(source: str, fingerprint: str | None) -> LocalFiles | HubStream:
    """The reader of a source; `fingerprint`: of the content begun with, which a hub source then reads again."""
    if _on_hub(source):
        return _open_hub(source, fingerprint)
    root, kind, files = find_files(source)
    fingerprint = files_fingerprint(root, files)
    if kind == "parquet":
        with _reading(source):
            return HubStream(root.name, fingerprint, _stream("parquet", data_files=[str(p) for p in files]))
    return LocalFiles(root.name, fingerprint, kind, files)


def find_files(source: str) -> tuple[Path, str, list[Path]]:
    """(the source resolved, the one kind of its files, the files in the order of their names)."""
    root = Path(source).resolve()
    if not root.exists():
        example = CORPORA["openwebtext"][0]
        raise UserError(f"--source {source}: no such file or folder, and not a name on the hub like {example}")
    candidates = sorted(root.rglob("*")) if root.is_dir() else [root]
    files = [p for p in candidates if p.is_file() and _kind(p) and not is_hidden(p, root)]
    kinds = sorted({str(_kind(p)) for p in files})
    if len(kinds) != 1:
        found = f"holds {' and '.join(kinds)} files" if kinds else "holds none"
        raise UserError(f"--source {source} {found}: expected files of one kind, of {', '.join(KINDS)}")
    return root, kinds[0], files


def files_fingerprint(root: Path, files: list[Path]) -> str:
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
        raise Failed(f"cannot read {what} ({_one_line(error)}); the same command goes on later") from None


def _stream(path: str, **where: str | list[str]) -> IterableDataset:
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


def _read_jsonl(path: Path, offset: int) -> Iterator[tuple[object, int]]:
    """(field `text`, byte offset behind the line) of each line from `offset` (of the uncompressed bytes) on."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            file.seek(offset)
            for line in lines_in(cast(BinaryIO, file), path):
                start, offset = offset, offset + len(line)
                if line.strip():
                    yield _text_field(line, path, start), offset
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise Failed(f"{path} is damaged ({_one_line(error)})") from None


def _text_field(line: bytes, path: Path, start: int) -> object:
    try:
        return json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: the line at byte {start} is not a JSON object with the field `text`") from None


def _read_txt(path: Path) -> str:
    try:
        return read_small(path, LARGE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None


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

    def documents(self, position: object, done: int) -> Iterator[object]:
        """The texts from `position` on; None: all."""
        first, start = position if isinstance(position, list) else (0, 0)
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

    def __init__(self, name: str, fingerprint: str, stream: IterableDataset):
        self.name, self.fingerprint, self._stream = name, fingerprint, stream
        split = (stream.info.splits or {}).get("train")
        self.total = (split.num_examples or None) if split else None

    def position(self) -> dict[str, object]:
        """The state behind the last document yielded."""
        return {"version": _import_datasets().__version__, "state": self._stream.state_dict()}

    def documents(self, position: object, done: int) -> Iterator[object]:
        """The texts from `position` on, which lies behind `done` documents; None: all."""
        with _reading(self.name):
            if isinstance(position, dict) and position["version"] == _import_datasets().__version__:
                self._stream.load_state_dict(position["state"])
            elif done:
                self._stream = self._stream.skip(done)
            for example in self._stream:
                yield example.get("text")
