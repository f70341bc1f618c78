"""Results of evaluated weights in lm-evaluation-harness's own form: files in a read-out's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from lawa_exp.storage.commit import step_name
from lawa_exp.system.files import write_text_atomically

Files: TypeAlias = Callable[[str, int], Mapping[str, str]]  # (id, step) -> contents by path in the folder
FOLDER = "lm_eval"


def none(id: str, step: int) -> Mapping[str, str]:
    return {}


def place_of(id: str, step: int) -> str:
    """Where the results of the weights `id` after `step` are: as the harness's readers look for them."""
    return f"{FOLDER}/{id}/results_{step_name(step)}.json"


def write_files(out: Path, files: Mapping[str, str]) -> None:
    """Adds them to the folder `out`."""
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out / name, text)


def remove_files(out: Path) -> None:
    """Removes those of an earlier read-out from the folder `out`, and no others."""
    for path in out.glob(f"{FOLDER}/*/results_step_*.json"):
        path.unlink()
        with suppress(OSError):  # there are others
            path.parent.rmdir()
    with suppress(OSError):
        (out / FOLDER).rmdir()
