"""Folders of results of checkpoints that are no run: one of its own for each request, so that none replaces another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from lawa_exp.readout.request import Request
from lawa_exp.system.files import TURN, in_turn, turn, write_text_atomically

FILE = "request.json"  # in the folder: of what its results are


@contextmanager
def claimed(request: Request, root: Path, name: str, is_fixed: bool = False) -> Iterator[Path]:
    """--out, else --name in root, else `name` there, unless it holds results of another request and is not fixed.

    Where these are of another RUN, as of two folders `out`, then with the name of the folder above; else with a number.
    A folder is chosen and claimed in one step, one process at a time; inside, one process at a time writes into it.
    """
    folder = Path(request.out) if request.out else root / (request.name or name)
    if not (request.out or request.name or is_fixed):
        root.mkdir(parents=True, exist_ok=True)
        with turn(root / TURN):
            folder = _free(request, root, name)
            _claim(request, folder)
    with in_turn(folder):
        _claim(request, folder)
        yield folder


def _free(request: Request, root: Path, name: str) -> Path:
    own, holder = _identity(request), _holder(root / name)
    above = Path(request.target.run).resolve().parent.name
    if holder is not None and holder.get("run") != own["run"] and above:
        name = f"{above}-{name}"
    names = chain([name], (f"{name}-{n}" for n in count(2)))
    return next(root / each for each in names if _holder(root / each) in (None, own))


def _claim(request: Request, folder: Path) -> None:
    """Writes into the folder of what its results are."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / FILE, json.dumps(_identity(request), indent=1) + "\n")


def _holder(folder: Path) -> dict[str, Any] | None:
    """Of what the results in the folder are, empty where that is not known or it is a file; None: there are none.

    A process that was killed before it wrote leaves hidden files alone: of those it can hold any.
    """
    if not folder.exists() or (folder.is_dir() and all(each.name.startswith(".") for each in folder.iterdir())):
        return None
    try:
        content = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _identity(request: Request) -> dict[str, Any]:
    """What tells two requests apart, and does not depend on the current folder."""
    target, e = request.target, request.evaluation
    data = None if e.data is None else str(Path(e.data).expanduser().resolve())
    return {
        **{"run": str(Path(target.run).resolve()), "data": data, "evaluate": e.how, "model": e.model},
        **{"dataset": e.dataset, "overrides": list(e.overrides), "flags": dict(e.flags)},
        **{"samples": e.samples, "key": target.key, "step_from": target.choice.step_from},
        "include_averages": target.choice.include_averages,
    }
