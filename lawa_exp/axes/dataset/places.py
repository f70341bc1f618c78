"""Where data sets are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from lawa_exp.axes.dataset.corpora import corpus_in
from lawa_exp.system.errors import UserError


class DataMissing(UserError):
    """A data set is in none of the places where it is looked for."""


def find(name: str, path: str | None, folder: str | None, wanted: tuple[str, ...], get: str) -> Path:
    """The file or folder of data set `name`: `path`, else LAWA_DATA, else ./data; each itself or its `folder` inside.

    wanted: file names, one of which a folder must hold. Without them, only a folder that was named (by `path`, or
    called `folder`) will do, or a file.
    get: what the message proposes when nothing is found, which is a DataMissing.
    """
    shared = os.environ.get("LAWA_DATA")
    roots = [Path(p).expanduser() for p in ([path] if path else [shared, "data"]) if p]
    looked = []
    for root in roots:
        for place in [root / folder, root] if folder else [root]:
            named = path is not None or place.name == folder
            if place.is_file() and not wanted:
                return whole(place)
            if place.is_dir() and (any((place / w).is_file() for w in wanted) if wanted else named):
                return place.resolve()
            looked.append(str(place))
    what = " or ".join(wanted) or "a file or folder"
    hint = "" if shared or path else " (LAWA_DATA is not set)"
    if corpus := corpus_in(folder):
        get = f"make it with {corpus.how}; or {get}"
    raise DataMissing(f"dataset={name}: {what} not found; looked in {', '.join(looked)}{hint}; {get}")


def whole(path: Path) -> Path:
    """The path from the root; of a file under its own name, which in the hub's cache is that of a link to another."""
    return path.parent.resolve() / path.name if path.is_file() else path.resolve()


SOLE = "serves as val and as test"


def sole(split: str) -> str:
    """What is said of data with one held-out split alone."""
    return f"the sole held-out split, {split}, {SOLE}"


def is_hidden(path: Path, root: Path) -> bool:
    """Whether `path`, or a folder between it and `root`, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
