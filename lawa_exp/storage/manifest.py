"""manifest.json in a sweep's folder: its entries, and where their runs are, wherever it is read and was moved to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from lawa_exp.system.errors import UserError
from lawa_exp.system.files import in_turn, read_small, write_text_atomically
from lawa_exp.system.seal import sealed, unsealed

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


def read(sweep: Path, runs_alone: bool = False) -> Manifest:
    """The manifest, with the path of each entry's run as its run_dir. UserError: there is none, or it is damaged.

    runs_alone: nothing else of the entries is needed, nor has to be there.
    """
    if not (sweep / NAME).is_file():
        raise UserError(f"SWEEP={sweep}: no {NAME} in this folder")
    try:
        content = unsealed(read_small(sweep / NAME))
        entries = [checked(entry, sweep, runs_alone) for entry in content["entries"]]
        return {"command": str(content["command"]), "entries": entries}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{sweep / NAME} is damaged: start the sweep again, which writes it anew (edited by hand: remove its crc32)"
        ) from None


def write(sweep: Path, content: Mapping[str, Any]) -> None:
    """content: a `Manifest`, whose run directories are text."""
    write_text_atomically(sweep / NAME, json.dumps(sealed(content), indent=1))


def add(sweep: Path, content: Mapping[str, Any]) -> None:
    """Adds the entries to those of the folder, which is made; several processes may do so at a time."""
    with in_turn(sweep):
        entries: list[Any] = []
        if (sweep / NAME).is_file():
            try:
                entries = unsealed(read_small(sweep / NAME))["entries"]
                new = [entry for entry in content["entries"] if entry not in entries]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f"{sweep / NAME} is damaged: remove it, and start the sweep again") from None
        else:
            new = content["entries"]
        write(sweep, {**content, "entries": [*entries, *new]})


def checked(entry: Any, sweep: Path, runs_alone: bool) -> Entry:
    """An entry as `write` was given it. ValueError, KeyError, TypeError: it is none."""
    if not runs_alone:
        lists = entry["overrides"], entry["averages"]
        texts = all(isinstance(of, list) and all(isinstance(text, str) for text in of) for of in lists)
        if not texts or type(entry["steps"]) is not int:
            raise TypeError(entry)
    return cast(Entry, {**entry, "run_dir": find_run(entry["run_dir"], sweep)})


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
