"""Which files of rows a path stands for, and of which split each is."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    where, path = f"dataset.path={place}", Path(place).expanduser()
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{where}: no file of rows with columns; expected {', '.join(SUFFIXES)}")
        return Files({"train": [path]})
    if path.is_dir() and (kept := _of_datasets(path)):
        return kept
    root = path if path.is_dir() else Path(PATTERN.split(f"{path}", maxsplit=1)[0] + "-").parent
    inside = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
    suffixes = (*JSON, *PARQUET, *CSV)
    files = sorted(p for p in inside if p.is_file() and p.name.endswith(suffixes) and not is_hidden(p, root))
    if not files:
        raise UserError(f"{where}: no file of rows; expected {', '.join(suffixes)}, or what `datasets` saved")
    kinds = [kind for kind, of in KINDS.items() if any(p.name.endswith(of) for p in files)]
    if len(kinds) > 1:
        raise UserError(f"{where}: files of {' and '.join(kinds)}; give those of one kind, as a pattern")
    return _by_name(files, root, where)


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
