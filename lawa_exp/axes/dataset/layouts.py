"""Which files of rows a path stands for, and of which split each is."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lawa_exp.axes.dataset.places import is_hidden
from lawa_exp.axes.dataset.tables import CSV, JSON, PARQUET, SUFFIXES, listed
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json

SPLITS = {"train": "train|training", "val": "val|valid|validation|dev|eval", "test": "test|testing"}
NAMES = {split: re.compile(rf"(.*[-_.])?({words})([-_.\d].*)?", re.IGNORECASE) for split, words in SPLITS.items()}
KINDS = {"JSON lines": JSON, "Parquet": PARQUET, "CSV": CSV}
SAVED, PART, INFO = "dataset_dict.json", "state.json", "dataset_info.json"  # of the package datasets
PATTERN = re.compile(r"[*?[]")
SHARD = re.compile(r"(.*)-\d+-of-(\d+)\b.*")


@dataclass(frozen=True)
class Files:
    """splits: the files of each in order, `train` always among them. note: what of the place is not read."""

    splits: dict[str, list[Path]]
    note: str = ""


def is_pattern(path: str) -> bool:
    return bool(PATTERN.search(path)) and not Path(path).expanduser().exists()


def files_at(place: str | Path) -> Files:
    """Of a file, a folder or a pattern (`*`, `**`, `?`). UserError: what is meant is not clear, and what lies there.

    Files whose names, or the folders that they are in, say so are train, val and test; where none does, all are train.
    """
    files = _files_at(f"dataset.path={place}", Path(place).expanduser())
    lacks = _shards_missing([file for of in files.splits.values() for file in of])
    return replace(files, note="; ".join(filter(None, (files.note, lacks))))


def _files_at(where: str, path: Path) -> Files:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{where}: no file of rows with columns; expected {', '.join(SUFFIXES)}")
        return Files({"train": [path]})
    try:
        if path.is_dir() and (kept := _of_datasets(path)):
            return kept
    except FileNotFoundError as error:
        raise UserError(f"{where}: {error.filename} is missing") from None
    except (KeyError, TypeError, AttributeError):
        names = f"{SAVED}, {PART} or {INFO}"
        raise UserError(f"{where}: its {names} is damaged: it is not what the package datasets writes") from None
    root = path if path.is_dir() else Path(PATTERN.split(f"{path}", maxsplit=1)[0] + "-").parent
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
    suffixes = (*JSON, *PARQUET, *CSV)
    inside = [p for p in found if not is_hidden(p, root)]
    _check_links(inside, suffixes, where)
    files = sorted(p for p in inside if p.is_file() and p.name.endswith(suffixes))
    if not files:
        raise UserError(f"{where}: no file of rows; expected {', '.join(suffixes)}, or what `datasets` saved")
    kinds = [kind for kind, of in KINDS.items() if any(p.name.endswith(of) for p in files)]
    if len(kinds) > 1:
        raise UserError(f"{where}: files of {' and '.join(kinds)}; give those of one kind, as a pattern")
    for file in files:
        if (packed := file.with_name(f"{file.name}.gz")) in files:
            raise UserError(f"{where}: {file.name} and {packed.name} are the same rows twice; give one of them")
    return _by_name(files, root, where)


def _check_links(inside: Sequence[Path], suffixes: tuple[str, ...], where: str) -> None:
    """UserError: a link leads nowhere, or to a folder of files, into which a walk through folders does not go."""
    for path in inside:
        if not path.is_symlink():
            continue
        if path.name.endswith(suffixes) and not path.exists():
            raise UserError(f"{where}: {path} is a link that leads nowhere")
        if path.is_dir() and any(each.name.endswith(suffixes) for each in path.rglob("*")):
            raise UserError(
                f"{where}: {path} is a link to a folder of files, which is not followed; give what is meant as a "
                "pattern, such as 'DIR/**/*.jsonl', which is"
            )


def _shards_missing(files: Sequence[Path]) -> str:
    """What is said of files NAME-00000-of-00004 that are not all there; else empty."""
    shards: dict[tuple[Path, str, int], int] = {}
    for file in files:
        if match := SHARD.fullmatch(file.name):
            key = file.parent, match[1], int(match[2])
            shards[key] = shards.get(key, 0) + 1
    return ", ".join(f"{name}: {n} of {total} shards" for (_, name, total), n in shards.items() if n < total)


def _by_name(files: Sequence[Path], root: Path, where: str) -> Files:
    splits: dict[str, list[Path]] = {}
    unnamed: list[str] = []
    configurations: set[str] = set()
    for file in files:
        parts = file.relative_to(root).parts
        said = [next((split for split, name in NAMES.items() if name.fullmatch(part)), None) for part in parts]
        split = next((one for one in reversed(said) if one), None)
        if split is None:
            unnamed.append("/".join(parts))
            continue
        splits.setdefault(split, []).append(file)
        configurations.add("/".join(p for p, one in zip(parts[:-1], said, strict=False) if one is None) or ".")
    if not splits:
        return Files({"train": list(files)})
    if len(configurations) > 1:
        raise UserError(f"{where}: several data sets: {listed(sorted(configurations))}; give the folder of one")
    if "train" not in splits:
        raise UserError(f"{where}: files of {' and '.join(splits)}, and none is called train")
    if unnamed:
        raise UserError(f"{where}: {listed(unnamed)} is of no split, as others are; give a pattern without it")
    return Files({split: splits[split] for split in SPLITS if split in splits})


def _of_datasets(folder: Path) -> Files | None:
    """What the package datasets has saved (`save_to_disk`), or keeps in its cache."""
    if (folder / SAVED).is_file():
        names = read_json(folder / SAVED)["splits"]
        return _chosen({name: _saved(folder / name) for name in names}, folder)
    if (folder / PART).is_file():
        return Files({"train": _saved(folder)})
    arrows = sorted(folder.glob("*.arrow"))
    if not arrows or not (folder / INFO).is_file():
        return None
    names = read_json(folder / INFO).get("splits") or {}
    ends = {name: re.compile(rf"-{re.escape(name)}(-\d+-of-\d+)?\.arrow$") for name in names}
    of = {name: [p for p in arrows if end.search(p.name)] for name, end in ends.items()}
    return _chosen({name: files for name, files in of.items() if files}, folder)


def _saved(folder: Path) -> list[Path]:
    """The files of a split, in the order in which they were saved."""
    state = read_json(folder / PART)
    if state.get("_indices_data_files"):
        raise UserError(f"dataset.path={folder}: it is a selection of rows; save it again after flatten_indices()")
    files = [folder / entry["filename"] for entry in state["_data_files"]]
    for file in files:
        if not file.is_file():
            raise UserError(f"dataset.path={folder}: {file.name} is missing")
    return files


def _chosen(named: dict[str, list[Path]], folder: Path) -> Files:
    splits: dict[str, list[Path]] = {}
    left = []
    for name, files in named.items():
        split = next((split for split, names in NAMES.items() if names.fullmatch(name)), None)
        if split is None or split in splits:
            left.append(name)
        else:
            splits[split] = files
    if "train" not in splits:
        raise UserError(
            f"dataset.path={folder}: splits {listed(list(named))}, and none is called train; give FOLDER/SPLIT"
        )
    note = f"splits that are not read: {listed(left)}" if left else ""
    return Files({split: splits[split] for split in SPLITS if split in splits}, note)
