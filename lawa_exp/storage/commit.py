"""Folders that exist whole or not at all.

A folder is written under a temporary name, synced, given a manifest with the size and checksum of each file, and
renamed. What has no manifest does not exist; `verify` names what is damaged.
"""

from __future__ import annotations

import filecmp
import glob
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from lawa_exp.system.files import LOCK, PARTIAL, clear, discard, read_json, sync, temporary, written_by

MANIFEST = "manifest.json"
REPLACED = ".replaced-"  # the folder that it replaces, for an instant


class Entry(TypedDict):
    """What a manifest says of a file."""

    bytes: int
    crc32: int


Manifest = dict[str, Entry]  # by the file's path in its folder


class Damaged(Exception):
    """A committed folder whose content is not what was written."""


def commit(target: Path, files: Mapping[str, Callable[[Path], object]]) -> Manifest:
    """Writes the folder `target`; each file is made by a function of its path.

    Where `target` exists with the same content it is left alone. Returns the manifest.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear(target.parent, glob.escape(target.name))
    partial = temporary(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        manifest: Manifest = {}
        for name, source in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            source(path)
            sync(path)
            manifest[name] = {"bytes": path.stat().st_size, "crc32": file_crc32(path)}
        publish(partial, target, manifest)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def publish(partial: Path, target: Path, manifest: Manifest) -> None:
    """Makes `partial`, whose files are synced, into the committed folder `target`."""
    if _manifest(target) == manifest and _same_files(partial, target, manifest):
        shutil.rmtree(partial)
        return
    written = partial / MANIFEST
    written.write_text(json.dumps(manifest, indent=1, sort_keys=True))
    sync(written)
    for folder in {p.parent for p in partial.rglob("*")}:
        sync(folder)
    replaced = temporary(target, REPLACED)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    partial.rename(target)
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove(folder: Path) -> None:
    """Deletes a committed folder; a kill half-way leaves a partial folder, not a damaged one."""
    partial = temporary(folder)
    shutil.rmtree(partial, ignore_errors=True)
    folder.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def tidy(root: Path) -> None:
    """Clears what a kill left under `root`, whose lock the caller holds; what other processes write stays.

    Partial folders go, a replaced folder without its successor comes back.
    """
    for leftover in left_under(root, PARTIAL):
        discard(leftover)
    for leftover in left_under(root, REPLACED):
        original = leftover.with_name(written_by(leftover, REPLACED)[0])
        if original.exists():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.rename(original)


def left_under(root: Path, prefix: str) -> list[Path]:
    """What processes that are gone left; a plain name is of one that had the lock of the nearest folder with one."""
    leftovers = []
    linked = [path for path in root.glob("*") if path.is_symlink() and path.is_dir()]  # which ** passes over
    for path in [path for folder in (root, *linked) for path in folder.glob(f"**/{prefix}*")]:
        inner = path.relative_to(root).parents[:-1]  # folders between the two
        lives = written_by(path, prefix)[1]
        if lives is False or (lives is None and not any((root / folder / LOCK).exists() for folder in inner)):
            leftovers.append(path)
    return leftovers


def verify(target: Path, part: int = 0, parts: int = 1) -> None:
    """Raises `Damaged`, which names the file, unless every file has the size and checksum of the manifest.

    part, parts: where several share the work, one of them looks at every `parts`-th file.
    """
    manifest = _manifest(target)
    if manifest is None:
        raise Damaged(f"{target / MANIFEST} is missing or unreadable")
    present = {path.name for path in target.iterdir() if path.suffix in (".safetensors", ".json")}
    for name in sorted(present - manifest.keys() - {MANIFEST}):
        raise Damaged(f"{target / MANIFEST} does not name {name}, which is in its folder")
    for name, entry in sorted(manifest.items())[part::parts]:
        path = target / name
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise Damaged(f"{path} has {path.stat().st_size} bytes, expected {entry['bytes']}")
        if file_crc32(path) != entry["crc32"]:
            raise Damaged(f"{path} does not have the checksum of its manifest")


def same_content(one: Path, other: Path) -> bool:
    """Whether two committed folders hold the same bytes."""
    names = set(_manifest(one) or {})
    return names == set(_manifest(other) or {}) and _same_files(one, other, names)


def _same_files(one: Path, other: Path, names: Iterable[str]) -> bool:
    return all((other / n).is_file() and filecmp.cmp(one / n, other / n, shallow=False) for n in names)


def steps_in(root: Path) -> dict[int, Path]:
    """The committed step folders (`step_00001000`) under `root`, by step, ascending; not verified."""
    found = {}
    for path in root.glob("step_*") if root.is_dir() else ():
        if path.name[5:].isdigit() and (path / MANIFEST).is_file():
            found[int(path.name[5:])] = path
    return dict(sorted(found.items()))


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def file_crc32(path: Path) -> int:
    from isal.isal_zlib import crc32  # at the speed of the memory, which zlib's is not

    crc = 0
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(1 << 18))
        while n := file.readinto(buffer):
            crc = crc32(buffer[:n], crc)
    return crc


def _manifest(target: Path) -> Manifest | None:
    try:
        content = read_json(target / MANIFEST)
        if not all(map(_is_inside, content)):
            return None
        return {name: {"bytes": int(entry["bytes"]), "crc32": int(entry["crc32"])} for name, entry in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_inside(name: str) -> bool:
    """Whether it leads into the folder and nowhere else."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts
