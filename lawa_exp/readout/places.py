"""Folders of results of checkpoints that are no run: one of its own for each request, so that none replaces another."""

from __future__ import annotations

import json
from itertools import chain, count
from pathlib import Path
from typing import Any

from lawa_exp.readout.request import Request
from lawa_exp.system.files import write_text_atomically

FILE = "request.json"  # in the folder: of what its results are


def results_of(request: Request, root: Path, name: str) -> Path:
    """--out, else `name` in root, unless it holds the results of another request.

    Where these are of another RUN, as of two folders `out`, then with the name of the folder above; else with a number.
    """
    if request.out:
        return Path(request.out)
    own, holder = _identity(request), _holder(root / name)
    above = Path(request.target.run).resolve().parent.name
    if holder is not None and holder.get("run") != own["run"] and above:
        name = f"{above}-{name}"
    names = chain([name], (f"{name}-{n}" for n in count(2)))
    return next(root / each for each in names if _holder(root / each) in (None, own))


def claim(request: Request, folder: Path) -> None:
    """Writes into the folder of what its results are."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / FILE, json.dumps(_identity(request), indent=1) + "\n")


def _holder(folder: Path) -> dict[str, Any] | None:
    """Of what the results in the folder are, empty where that is not known; None: there are none."""
    if not folder.exists() or not any(folder.iterdir()):
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
