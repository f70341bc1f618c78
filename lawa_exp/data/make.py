"""A corpus made from a copy of its public source: the rule of `corpora.yaml`, and the checks of what comes out."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lawa_exp.axes.dataset.corpora import Corpus, Written
from lawa_exp.axes.dataset.tables import PARQUET, parts_of
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import folder_for, sync, temporary

BLOCK = 1 << 20  # bytes
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
DOCUMENT = re.compile(r"<doc [^\n]*\n(.*?)</doc>", re.DOTALL)
TAGS = re.compile(r"</?(?:br|ref|nowiki|small|sub|sup|div|span)[^>]*>")
SHORTEST = 200  # characters of an article
SPLITS = {"train": ("train",), "val": ("test", "val")}  # of images: what the source calls them


def make(corpus: Corpus, source: Path, out: Path) -> list[str]:
    """Writes the corpus into `out`, each file whole and checked or not at all; returns lines on what is there now.

    source: a folder, a file or an archive. UserError: the source does not have it, or gives other content, which names
    both sums.
    """
    if not source.exists():
        raise UserError(f"--from {source}: no such file or folder; expected a copy of {corpus.source}")
    if corpus.is_in(out) or (corpus.tree and out.exists()):
        return [*_there(lambda: check(corpus, out)), f"--from {source} was not read: all is there already"]
    with folder_for(out.parent if corpus.tree else out), _unpacked(source, out) as folder:
        if corpus.tree:
            return [_images(corpus, folder, out)]
        return [_file(corpus, file, folder, source, out / file.name) for file in corpus.files]


def check(corpus: Corpus, place: Path) -> list[str]:
    """Lines on what lies there. UserError: it is not the corpus."""
    if corpus.tree:
        digest, count = tree_digest({split: place / split for split in SPLITS})
        if digest != corpus.tree:
            raise UserError(f"{place} has other content: sha256 over all files {digest}, expected {corpus.tree}")
        return [f"{place}: {count:,} files, sha256 over all as stated"]
    return [_checked(file, place / file.name, place / file.name) for file in corpus.files]


def _there(check: Callable[[], list[str]]) -> list[str]:
    """The lines of `check`, of files that were not made now. UserError: they are not the corpus."""
    try:
        return [f"{line}, is there already" for line in check()]
    except UserError as error:
        raise UserError(f"{error}; it is there already: remove it, or give another --out") from None


@contextmanager
def _unpacked(source: Path, out: Path) -> Iterator[Path]:
    """The folder of the source; of an archive what it holds, next to `out` as long as it is needed."""
    if not source.name.endswith(ARCHIVES):
        yield source
        return
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".unpacked-") as folder:
        try:
            if source.suffix == ".zip":
                with zipfile.ZipFile(source) as archive:
                    archive.extractall(folder)
            else:
                with tarfile.open(source) as packed:
                    packed.extractall(folder, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"--from {source}: the archive is damaged ({error})") from None
        yield Path(folder)


def _file(corpus: Corpus, file: Written, folder: Path, source: Path, target: Path) -> str:
    if target.is_file():
        return _there(lambda: [_checked(file, target, target)])[0]
    copy = f"expected a copy of {corpus.source}"
    candidates: list[tuple[str, Iterable[bytes]]]
    if corpus.kind == "articles":
        candidates = [(str(source), articles(folder, f"--from {source}", copy))]
    else:
        candidates = list(_candidates(file, folder))
    if not candidates:
        raise UserError(f"--from {source}: it has no {' or '.join(file.names)}; {copy}")
    partial, refusal = temporary(target), None
    with folder_for(target.parent):
        try:
            for name, blocks in candidates:
                with partial.open("wb") as written:
                    written.writelines(blocks)
                try:
                    line = _checked(file, partial, target)
                except UserError as error:
                    refusal = refusal or UserError(f"--from {name}: {error}; {copy}")
                    continue
                sync(partial)
                partial.replace(target)
                return line
        finally:
            partial.unlink(missing_ok=True)
        assert refusal
        raise refusal


def _candidates(file: Written, folder: Path) -> Iterator[tuple[str, Iterable[bytes]]]:
    """(name, content) of what the source may call it; of Parquet the shards together."""
    if folder.is_file():
        yield str(folder), _content([folder])
        return
    for pattern in file.names:
        if pattern.endswith(PARQUET):
            by_folder: dict[Path, list[Path]] = {}
            for path in sorted(folder.rglob(pattern)):
                by_folder.setdefault(path.parent, []).append(path)
            yield from ((str(paths[0]), _content(paths)) for paths in by_folder.values())
            continue
        for packed in ("", ".gz"):
            yield from (
                (str(path), _content([path])) for path in sorted(folder.rglob(pattern + packed)) if path.is_file()
            )


def _content(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        if path.name.endswith(PARQUET):
            for part in parts_of(path, f"--from {path}", ["text"]):
                yield "".join(row or " \n" for row in part["text"]).encode()
            continue
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block


def articles(folder: Path, where: str, copy: str) -> Iterator[bytes]:
    """The text of the articles that lie in `text/AA` of a copy of jason-feng/wikiVisual: see corpora.yaml.

    UserError: a file is missing. where: how the message begins; copy: what it says was expected.
    """
    place = next((p for p in (folder / "text" / "AA", *sorted(folder.rglob("text/AA")), folder) if p.is_dir()), folder)
    first = True
    for path in (place / f"wiki_{number:02}" for number in range(100)):
        if not path.is_file():
            raise UserError(f"{where}: text/AA/{path.name} is missing; {copy}")
        for document in DOCUMENT.finditer(path.read_bytes().decode("utf-8", "replace")):
            text = TAGS.sub("", document[1].strip("\n"))
            if len(text) >= SHORTEST:
                yield (text if first else f"\n\n\n{text}").encode()
                first = False
    yield b"\n"


def _checked(file: Written, path: Path, target: Path) -> str:
    """A line on the content of `path`, which `target` is. UserError: it is another; both sums."""
    name = target if path == target else target.name
    sums: dict[str, Callable[[], str]] = {"sha256": lambda: _sum(path, "sha256"), "md5": lambda: _sum(path, "md5")}
    size = f"{path.stat().st_size:,} bytes"
    problem = ""
    for kind, expected in (("sha256", file.sha256), ("md5", file.md5)):
        if expected:
            digest = sums[kind]()
            if digest == expected:
                return f"{target}: {size}, {kind} {digest[:16]} as stated"
            problem = f"{name} has {size} with {kind} {digest}, expected {expected}"
    if file.words is None:
        raise UserError(problem)
    with path.open(encoding="utf-8", errors="replace", newline="") as lines:
        words = sum(len(line.split()) + line.endswith("\n") for line in lines)
    if words != file.words:
        raise UserError(f"{name} has {words:,} words, expected {file.words:,}" + f"; {problem}" * bool(problem))
    other = f", of other bytes than ours ({problem.rpartition(' with ')[2]}): {file.note}" if problem else ""
    return f"{target}: {size}, {words:,} words as published{other}"


def _sum(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def tree_digest(splits: dict[str, Path]) -> tuple[str, int]:
    """(sha256 over `split/CLASS/NAME` and the sha256 of each file, in the order of these names; how many there are)."""
    digest, count = hashlib.sha256(), 0
    for split in sorted(splits):
        for path in sorted(splits[split].glob("*/*")):
            digest.update(f"{split}/{path.parent.name}/{path.name}\0{_sum(path, 'sha256')}\n".encode())
            count += 1
    return digest.hexdigest(), count


def _images(corpus: Corpus, folder: Path, out: Path) -> str:
    root = next((path.parent for path in (folder / "train", *sorted(folder.rglob("train"))) if path.is_dir()), folder)
    places = {s: next((root / n for n in names if (root / n).is_dir()), root / s) for s, names in SPLITS.items()}
    digest, count = tree_digest(places)
    if digest != corpus.tree:
        where = f"--from {folder}: {count:,} files in {', '.join(map(str, places.values()))}"
        raise UserError(f"{where} with sha256 over all {digest}, expected {corpus.tree}: a copy of {corpus.source}")
    partial = temporary(out)
    shutil.rmtree(partial, ignore_errors=True)
    for split, place in places.items():
        shutil.copytree(place, partial / split, copy_function=shutil.copyfile)
    partial.replace(out)
    return f"{out}: {count:,} files, sha256 over all {digest[:16]} as stated"
