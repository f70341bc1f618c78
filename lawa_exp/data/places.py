"""Where data sets are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from lawa_exp.config import UserError


def find(name: str, path: str | None, folder: str | None, wanted: tuple[str, ...], get: str) -> Path:
    """The file or folder of data set `name`: `path`, else LAWA_DATA, else ./data; each itself or its `folder` inside.

    wanted: file names, one of which a folder must hold (empty: any folder, or a file, will do).
    get: what the message proposes when nothing is found.
    """
    if path is not None:
        roots = [Path(path).expanduser()]
    else:
        roots = [Path(os.environ["LAWA_DATA"]).expanduser()] if os.environ.get("LAWA_DATA") else []
        roots.append(Path("data"))
    looked = []
    for root in roots:
        for place in [root / folder, root] if folder else [root]:
            if (place.is_file() and not wanted) or (place.is_dir() and _holds(place, wanted)):
                return place.resolve()
            looked.append(str(place))
    what = " or ".join(wanted) or "a file or folder"
    hint = "" if os.environ.get("LAWA_DATA") or path else " (LAWA_DATA is not set)"
    raise UserError(f"dataset={name}: {what} not found; looked in {', '.join(looked)}{hint}; {get}")


def _holds(folder: Path, wanted: tuple[str, ...]) -> bool:
    return not wanted or any((folder / name).is_file() for name in wanted)
