"""manifest.json in a sweep's folder: its entries, and where their runs are, wherever it is read and was moved to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict, cast

from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json

NAME = "manifest.json"


class Entry(TypedDict):
    """An entry of the multirun. averages: the ids of its averagers."""

    overrides: list[str]
    run_dir: Path
    steps: int
    averages: list[str]


class Manifest(TypedDict):
    """command: as it was typed."""

    command: str
    entries: list[Entry]


def read(sweep: Path) -> Manifest:
    """The manifest, with the path of each entry's run as its run_dir. UserError: there is none, or it is damaged."""
    if not (sweep / NAME).is_file():
        raise UserError(f"SWEEP={sweep}: no {NAME} in this folder")
    try:
        content = read_json(sweep / NAME)
        entries = [
            cast(Entry, {**entry, "run_dir": find_run(entry["run_dir"], sweep)})  # as `runs.sweep` wrote it
            for entry in content["entries"]
        ]
        return {"command": content["command"], "entries": entries}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(sweep) from None


def damaged(sweep: Path) -> UserError:
    """That the manifest is no such thing."""
    return UserError(f"{sweep / NAME} is damaged: start the sweep again, which writes it anew")


def find_run(run_dir: str, sweep: Path) -> Path:
    """The run that a file of the sweep's folder names; where it is nowhere, the place that it belongs in.

    By its name in the runs root that holds sweeps/, else as written: from the folder in which the sweep was started.
    """
    root = sweep.resolve().parent.parent
    if not sweep.is_absolute():
        root = Path(os.path.relpath(root))
    sibling = root / Path(run_dir).name
    return next((path for path in (sibling, Path(run_dir)) if path.exists()), sibling)


def not_finished(run: Path) -> str | None:
    """Why there is nothing of the run to be analysed; None where it is done."""
    if (run / "DONE").exists():
        return None
    if not run.exists():
        return "missing"
    return "diverged" if (run / "DIVERGED").exists() else "not finished"
