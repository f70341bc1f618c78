"""Outputs that appear whole or not at all: written in a temporary folder, synced, and moved into place."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from lawa_exp.formats.about import FILE
from lawa_exp.formats.checkpoint import is_looked_for
from lawa_exp.formats.dtypes import FLOATS, SIZES
from lawa_exp.formats.folders import WHOLE, check_carried
from lawa_exp.formats.stored import SUFFIXES, Checkpoint, Index, Writer, count, using
from lawa_exp.formats.stream import OutFile
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_text, sync, temporary

CONFIG = "config.json"  # of transformers; says the dtype


class Output:
    """One average's folder, while it is being written. `files` are in the order of the checkpoint's sources."""

    def __init__(
        self, target: Path, like: Checkpoint, writers: list[Writer], dtype: str | None, name: str | None = None
    ) -> None:
        """target: the folder for the files. writers: of `like`. name: of the only file, where it is not the input's."""
        self.target, self.like, self.dtype = target, like, dtype
        if (target.exists() or target.is_symlink()) and not target.is_dir():
            raise UserError(f"--out: {target} is a file, or a link that leads nowhere; expected a folder")
        if target.name.endswith(SUFFIXES) and not target.is_dir():
            raise UserError(
                f"--out={target}: that is a file's name; expected a folder, for a file named as the last input"
            )
        # Inside the target if there is one: it may be on another disk than its parent.
        self.partial = temporary((target if target.is_dir() else target.parent) / (target.name or "average"))
        self.files: list[OutFile] = []
        self.left_out = [key for writer in writers for key in writer.left_out]
        self.removed: list[Path] = []  # other weights that were in the target
        self.made = _make_folders(self.partial.parent)
        try:
            self.partial.mkdir()
            for path in like.extras.values():
                check_carried(path, like.path if like.path.is_dir() else like.path.parent)
            for source, writer in zip(like.sources, writers, strict=True):
                path = self.partial / like.place(source).with_name(name or writer.name)
                path.parent.mkdir(exist_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                self.files.append(OutFile(path, writer, fd))
                with using(path):
                    os.truncate(fd, writer.size)
        except BaseException:
            self.discard()
            raise

    def finish(self) -> None:
        """Syncs the files and adds those that are copied along."""
        for file in self.files:
            with using(file.path):
                os.fsync(file.fd)
        self._close()
        for place, path in self.like.extras.items():
            (self.partial / place).parent.mkdir(parents=True, exist_ok=True)
            if self.dtype and path.name == CONFIG:
                self._write(place, _with_dtype(read_text(path), self.dtype))
            else:
                shutil.copyfile(path, self.partial / place)
                sync(self.partial / place)
        for place, index in self.like.indexes.items():
            written = self._index(index, (self.partial / place).parent)
            self._write(place, json.dumps(written, indent=2, sort_keys=True) + "\n")
        if self.like.convert:
            self.left_out += self.like.convert(self.partial)
        if self.like.about and not self._says_it_itself():
            files = [] if self.like.convert else [self._place(file).as_posix() for file in self.files]
            said = {**json.loads(self.like.about), **({"files": files} if files else {})}
            self._write(FILE, json.dumps(said, sort_keys=True) + "\n")
        for folder in {file.parent for file in self.partial.rglob("*")}:
            sync(folder)

    def _place(self, file: OutFile) -> Path:
        return file.path.relative_to(self.partial)

    def _says_it_itself(self) -> bool:
        """Whether the metadata of the output's files say how they were made."""
        return not self.like.convert and all(file.writer.is_described for file in self.files)

    def publish(self, overwrite: bool, inputs: set[str]) -> bool:
        """Moves everything into place; False where the same was there already. UserError where something else was.

        overwrite: replaces that, and removes weights that a library would load for these, or as a part of them.
        inputs: the real paths of all, which are never removed.
        """
        made = sorted(p.relative_to(self.partial) for p in self.partial.rglob("*") if p.is_file())
        others = self._other_weights(made, inputs)
        if others and real_path(others[0]) in inputs:
            raise UserError(f"--out: {others[0]} is one of the inputs, and would be loaded for the average, or with it")
        if others and not overwrite:
            raise UserError(
                f"{others[0]} is there already, and would be loaded for the average, or with it; another --out, or "
                "--overwrite, which removes it"
            )
        there = [p for p in made if (self.target / p).exists()]
        different = [p for p in there if not filecmp.cmp(self.partial / p, self.target / p, shallow=False)]
        if different and not overwrite:
            raise UserError(
                f"{self.target / different[0]} is there already, with other content; another --out, or --overwrite"
            )
        for path in others:  # first: next to the new ones it would be taken for them
            path.unlink(missing_ok=True)
        self.removed += others
        if len(there) == len(made) and not different:
            return False
        if not self.target.exists():
            try:
                self.partial.rename(self.target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return self.publish(overwrite, inputs)  # another process came first
            sync(self.target.parent)
            self.made = []
            return True
        weights = {self._place(file) for file in self.files}
        for path in sorted(made, key=lambda p: p not in weights):  # an index comes after what it names
            (self.target / path).parent.mkdir(parents=True, exist_ok=True)
            (self.partial / path).replace(self.target / path)
        for folder in {(self.target / path).parent for path in made} | {self.target}:
            sync(folder)
        self.made = []
        return True

    def _other_weights(self, made: list[Path], inputs: set[str]) -> list[Path]:
        """Files in the target's folders that libraries look for as weights, where they look for some of `made`.

        Inputs come first.
        """
        folders = sorted({path.parent for path in made if is_looked_for(path.name)})
        there = (p for f in folders if (self.target / f).is_dir() for p in sorted((self.target / f).iterdir()))
        found = [p for p in there if is_looked_for(p.name) and p.relative_to(self.target) not in made]
        return sorted(found, key=lambda path: real_path(path) not in inputs)

    def discard(self) -> None:
        """Leaves nothing behind that was not published."""
        self._close()
        shutil.rmtree(self.partial, ignore_errors=True)
        for folder in reversed(self.made):
            with suppress(OSError):  # there is something in it
                folder.rmdir()

    def _close(self) -> None:
        for file in self.files:
            if file.fd >= 0:
                os.close(file.fd)
                file.fd = -1

    def _write(self, name: str, text: str) -> None:
        (self.partial / name).write_text(text)
        sync(self.partial / name)

    def _index(self, index: Index, folder: Path) -> Index:
        """The input's index, with the size in bytes of what was written in its folder."""
        files = [
            file for file in self.files if file.path.parent == folder and file.path.name in index["weight_map"].values()
        ]
        places = [p for file in files for p in file.writer.places.values()]
        metadata = index.get("metadata") or {}
        if "total_size" in metadata and self.dtype:
            metadata = {**metadata, "total_size": sum(count(p.shape) * SIZES[p.dtype] for p in places)}
        return {**index, "metadata": metadata}


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder and its parents; returns those that were not there, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return missing[::-1]


def _with_dtype(text: str, dtype: str) -> str:
    """config.json of transformers for weights of another dtype."""
    try:
        content = json.loads(text)
    except ValueError:
        return text
    assert dtype in FLOATS
    for key in ("torch_dtype", "dtype"):
        if isinstance(content, dict) and key in content:
            content[key] = dtype
    return json.dumps(content, indent=2) + "\n"


def file_name(last: Checkpoint) -> str | None:
    """The output's name where it is not that of the input: model.safetensors for a lone safetensors file.

    Names that a library looks for stay.
    """
    from lawa_exp.formats.safetensors import SafetensorsFile

    path, (source, *_) = last.path, last.sources
    lone = not path.is_dir() and isinstance(source, SafetensorsFile) and path.name not in WHOLE
    return "model.safetensors" if lone else None


def refuse_inputs(target: Path, name: str | None, last: Checkpoint, inputs: set[str]) -> None:
    """inputs: the real paths of all of them, and of their files."""
    for path in (target, *(target / (name or last.place(source)) for source in last.sources)):
        if real_path(path) in inputs:
            raise UserError(f"--out: {path} is one of the inputs")


def real_path(path: Path) -> str:
    return os.path.realpath(path)  # Path.resolve raises where links lead in a circle
