"""Committed folders of tensors, written by rank 0 alone or by all ranks of a sharded model together.

FSDP2 gives each rank some rows of every tensor, which are one run of bytes of its safetensors file. So all ranks write
into the same files, each its own bytes: nothing is gathered, no rank holds a row of another's, and the files are those
that an unsharded run writes. Any number of ranks reads its rows from them.
The ranks' file system must keep apart what several nodes write into one file (Lustre, GPFS, CephFS, a local disk).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lawa_exp.storage.commit import Manifest, commit, publish
from lawa_exp.storage.safetensors import (
    Kind,
    bytes_of,
    header_of,
    in_files,
    index_of,
    kind_of,
    map_stored,
    write_tensors,
)
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.files import PARTIAL

SHARD_SIZE = 5 * 10**9  # bytes of a file, as in transformers


@dataclass(frozen=True)
class Rows:
    """What this rank holds of a tensor of `shape`: `count` rows (of its first dimension) from `first` on."""

    shape: tuple[int, ...]
    first: int
    count: int


@dataclass(frozen=True)
class Piece:
    """Bytes of a file, from `begin` on."""

    begin: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Store:
    """rows: of each tensor that is sharded, by the parameter's name; empty where every rank holds the whole model."""

    ranks: Ranks = field(default_factory=Ranks)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    shard_size: int = SHARD_SIZE

    @property
    def writes(self) -> bool:
        """Whether this rank takes part in writing; then it must call whatever the others call, in one order."""
        return self.ranks.is_main or bool(self.rows)

    def commit(
        self,
        target: Path,
        groups: Mapping[str, Mapping[str, Tensor]],
        texts: Mapping[str, str] | None = None,
        name_of: Callable[[str], str] = str,
    ) -> None:
        """Commits the folder `target` with files of tensors by their stem ("model"), and of text by their name.

        name_of: the parameter's name of a tensor's; by it, and by the shape, it is known what is sharded. What is not
        sharded is rank 0's.
        """
        texts = dict(texts or {})
        parts = {stem: {n: self._rows(name_of(n), t) for n, t in tensors.items()} for stem, tensors in groups.items()}
        files: dict[str, tuple[str, dict[str, Kind]]] = {}
        for stem, tensors in groups.items():
            kinds = {n: _kind(t, parts[stem][n]) for n, t in tensors.items()}
            names = in_files(stem, kinds, self.shard_size)
            files |= {file: (stem, {n: kinds[n] for n in held}) for file, held in names.items()}
            if len(names) > 1:
                texts[f"{stem}.safetensors.index.json"] = index_of(names, kinds)
        if self.rows:
            self._commit_together(target, groups, parts, files, texts)
            return
        writers: dict[str, Callable[[Path], None]] = {}
        for file, (stem, kinds) in files.items():
            writers[file] = _writer({n: groups[stem][n] for n in kinds})
        writers |= {name: _text_writer(text) for name, text in texts.items()}
        commit(target, writers)

    def read(self, folder: Path, stem: str = "model", name_of: Callable[[str], str] = str) -> dict[str, Tensor]:
        """This rank's part of the tensors of `stem` in a committed folder, in memory of their own."""
        found = {}
        for name, tensor in map_stored(folder, stem).items():
            rows = self.rows.get(name_of(name))
            if rows and rows.shape == tuple(tensor.shape):
                tensor = tensor[rows.first : rows.first + rows.count]
            found[name] = tensor.clone()
        return found

    def _rows(self, name: str, tensor: Tensor) -> Rows | None:
        rows = self.rows.get(name)
        return rows if rows and tuple(tensor.shape) == (rows.count, *rows.shape[1:]) else None

    def _commit_together(
        self,
        target: Path,
        groups: Mapping[str, Mapping[str, Tensor]],
        parts: Mapping[str, Mapping[str, Rows | None]],
        files: Mapping[str, tuple[str, dict[str, Kind]]],
        texts: Mapping[str, str],
    ) -> None:
        ranks, partial = self.ranks, target.with_name(PARTIAL + target.name)  # of the run, which rank 0 has locked
        layout = {file: (stem, kinds, *header_of(kinds)) for file, (stem, kinds) in files.items()}

        def begin() -> None:
            if not ranks.is_main:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for file, (_, kinds, header, _) in layout.items():
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                (partial / file).touch()
                os.truncate(partial / file, len(header) + sum(kind.bytes for kind in kinds.values()))

        def write() -> dict[str, list[Piece]]:
            pieces: dict[str, list[Piece]] = {}
            for file, (stem, kinds, header, begins) in layout.items():
                own: list[tuple[int, Tensor | bytes]] = [(0, header)] if ranks.is_main else []
                for name, kind in kinds.items():
                    rows = parts[stem][name]
                    if rows is None and ranks.is_main:
                        own.append((begins[name], groups[stem][name]))
                    elif rows and rows.count:
                        own.append((begins[name] + rows.first * (kind.bytes // rows.shape[0]), groups[stem][name]))
                pieces[file] = write_pieces(partial / file, own)
            for name, text in texts.items() if ranks.is_main else ():
                pieces[name] = write_pieces(partial / name, [(0, text.encode())])
            return pieces

        try:
            ranks.agreed(begin)
            pieces = ranks.agreed(write)
            ranks.agreed(lambda: publish(partial, target, _manifest(pieces)) if ranks.is_main else None)
        except BaseException:
            if ranks.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise


def write_pieces(path: Path, pieces: Sequence[tuple[int, Tensor | bytes]]) -> list[Piece]:
    """Writes tensors, or bytes, at their places in a file, which is on the disk when this returns."""
    from isal.isal_zlib import crc32

    if not pieces:
        return []
    written = []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        for begin, content in pieces:
            data = bytes_of(content) if isinstance(content, Tensor) else memoryview(content)
            done = 0
            while done < len(data):
                done += os.pwrite(fd, data[done:], begin + done)
            written.append(Piece(begin, len(data), crc32(data)))
        os.fsync(fd)
    finally:
        os.close(fd)
    return written


def _manifest(of_ranks: list[dict[str, list[Piece]]]) -> Manifest:
    """That of the files, their checksums put together from those of the pieces."""
    from isal.isal_zlib import crc32_combine

    manifest: Manifest = {}
    for name in dict.fromkeys(name for files in of_ranks for name in files):
        pieces = sorted((p for files in of_ranks for p in files.get(name, []) if p.size), key=lambda p: p.begin)
        end = crc = 0
        for piece in pieces:
            assert piece.begin == end, f"{name}: nobody wrote the bytes from {end} to {piece.begin}, or two ranks did"
            end, crc = end + piece.size, crc32_combine(crc, piece.crc32, piece.size)
        manifest[name] = {"bytes": end, "crc32": crc}
    return manifest


def _kind(tensor: Tensor, rows: Rows | None) -> Kind:
    return Kind(tensor.dtype, rows.shape) if rows else kind_of(tensor)


def _writer(tensors: Mapping[str, Tensor]) -> Callable[[Path], None]:
    return lambda path: write_tensors(path, tensors)


def _text_writer(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write
