"""A copy of this package that queued jobs run from, so that editing the checkout later changes nothing in them.

`python -m lawa_exp.launch.slurm.pin FOLDER [MODULE ...]` prints where the copy is (for sbatch scripts)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from lawa_exp.system.errors import UserError
from lawa_exp.system.machine import COPIED_FROM, git_state

PACKAGE = Path(__file__).parents[2]


def pin(folder: Path, modules: Iterable[str] = ()) -> Path:
    """The copy, `folder`/<hash of its content>; one that is there already is used as it is.

    modules: names of the user's own modules, copied along. UserError where there is no such module.
    """
    files = {}
    tops = sorted({name.partition(".")[0] for name in modules})
    for source, root in [*ours(), *(part for name in tops for part in own(name))]:
        for file in sorted(source.rglob("*") if source.is_dir() else [source]):
            if file.is_file() and "__pycache__" not in file.parts:
                files[str(file.relative_to(root))] = file
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(f"{name}\0".encode() + file.read_bytes())
    target = folder / digest.hexdigest()[:12]
    if target.exists():
        return target
    partial = folder / f".partial-{target.name}-{os.getpid()}"
    for name, file in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, partial / name)
    (partial / COPIED_FROM).write_text(json.dumps(git_state()))
    try:
        partial.rename(target)
    except OSError:  # another process made the same copy
        shutil.rmtree(partial)
    return target


def ours() -> list[tuple[Path, Path]]:
    """This package, with its configuration files and its launcher, and the folder that their names are counted from."""
    root = PACKAGE.parent
    parts = [PACKAGE, root / "hydra_plugins" / "lawa_exp_launcher.py"]
    if not (PACKAGE / "conf").is_dir():  # a checkout; a wheel has them inside
        parts.append(root / "conf")
    return [(part, root) for part in parts]


def own(module: str) -> list[tuple[Path, Path]]:
    """The user's module or package of this name; nothing where that is installed."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and not spec.origin:  # a folder without __init__.py
        return [(Path(folder), Path(folder).parent) for folder in spec.submodule_search_locations or ()]
    if spec is None or not spec.origin:
        raise UserError(f"builder={module}: no such module here")
    origin = Path(spec.origin)
    if "site-packages" in origin.parts:
        return []
    part = origin.parent if origin.name == "__init__.py" else origin
    return [(part, part.parent)]


if __name__ == "__main__":
    print(pin(Path(sys.argv[1]), sys.argv[2:]).resolve())
