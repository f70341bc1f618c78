"""A folder of checkpoints: which of its files and folders are some, and which step each is of."""

from __future__ import annotations

import re
from pathlib import Path

from lawa_exp.checkpoint.commit import steps_in
from lawa_exp.config import UserError
from lawa_exp.formats.checkpoint import DCP, INDEX, WHOLE
from lawa_exp.formats.stored import SUFFIXES


def find_checkpoints(folder: Path, key: str) -> dict[int, Path]:
    """The checkpoints in `folder` by their step, ascending; what has no number in its name is passed over.

    Snapshots of one of our runs are those that were committed. A folder that holds a single file is that file.
    key: names the folder in messages. UserError: there is none, or two are of one step.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    found = steps_in(folder)
    if found:
        return found
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (step := step_in(path.name)) is None:
            continue
        checkpoint = checkpoint_in(path) if path.is_dir() else path if path.name.endswith(SUFFIXES) else None
        if checkpoint is None:
            continue
        if step in found:
            raise UserError(
                f"{key}={folder}: {found[step].relative_to(folder)} and {checkpoint.relative_to(folder)} are both of "
                f"step {step:,}; leave one of them in the folder"
            )
        found[step] = checkpoint
    if not found:
        raise UserError(
            f"{key}={folder}: no checkpoints there: files ({', '.join(SUFFIXES)}) or folders of them with the step in "
            "their names (ckpt_1000.pt, step_00001000/)"
        )
    return dict(sorted(found.items()))


def step_in(name: str) -> int | None:
    """The number after `step`, `iter` or `update`; else the last number of the name."""
    marked = re.findall(r"(?:step|iter|update)s?[-_=]?(\d+)", name, re.IGNORECASE)
    numbers = marked or re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def checkpoint_in(folder: Path) -> Path | None:
    """What a folder holds: itself where it is a checkpoint, the only file that may be one, or None."""
    if any((folder / name).is_file() for name in (*WHOLE, *(f"{w}{INDEX}" for w in WHOLE), DCP)):
        return folder
    files = [p for p in sorted(folder.iterdir()) if p.name.endswith(SUFFIXES)]
    return files[0] if len(files) == 1 else None
