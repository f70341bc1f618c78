"""`rerun=true`: a training done again, compared with the first by checksums, and what was not saved filled in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lawa_exp.storage.checksums import forget, write_text
from lawa_exp.storage.commit import REPLACED, Damaged, remove, same_content, steps_in, verify
from lawa_exp.storage.rows import encode, read_lines
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import ELSEWHERE

KEY = ("step", "split", "weights", "view", "eval_samples", "bn")  # of a row; with another value it is another thing


def check_one_disk(run: RunDir) -> None:
    """UserError: a folder of the run is on another disk, to which nothing is renamed."""
    if linked := [name for name in ELSEWHERE if (run.path / name).is_symlink()]:
        raise UserError(
            f"rerun=true: {run.path / linked[0]} is a link; put the folder itself there, or choose another run_dir"
        )


def merge_rerun(again: RunDir, run: RunDir, say: Callable[[str], None]) -> bool:
    """Takes the finished run `again` over into `run`; False, and nothing taken over, where their bytes differ.

    Killed half-way it can be done again: what was moved already is found in place. Damaged snapshots are replaced.
    """
    different = []
    before, after = whole_steps_in(run.trajectory), steps_in(again.trajectory)
    for step in before.keys() & after.keys():
        if not same_content(before[step], after[step]):
            different.append((step, "snapshot"))
    second = keyed(read_lines(again.metrics))
    try:
        first = keyed(read_lines(run.metrics))
    except Failed as error:
        aside = run.set_aside()
        say(f"warning: {error}; the rerun replaces it, and what it was is in {aside}")
        first = {}
    for key in first.keys() & second.keys():
        one, two = first[key], second[key]
        shared = (one.keys() & two.keys()) - {"nonfinite"}  # watch=noise_scale adds fields
        if any(encode({k: one[k]}) != encode({k: two[k]}) for k in shared):
            different.append((key[0], f"{key[1]} row of {key[2]}"))
    if different:
        step, what = min(different)
        aside = next(p for i in range(1, 10**6) if not (p := run.path / f"rerun-differs-{i}").exists())
        again.path.rename(aside)
        say(f"error: the rerun differs from the first training, first in the {what} of step {step:,}; it is in {aside}")
        return False
    say(
        f"the rerun equals the first training: {len(before.keys() & after.keys())} snapshots, "
        f"{len(first.keys() & second.keys())} rows"
    )
    for step in sorted(after.keys() - before.keys()):
        move(after[step], run.trajectory)
    # What was asked for then, and not now
    lost = [encode(row) for key, row in first.items() if not row.keys() <= second.get(key, {}).keys()]
    if lost:
        folder = run.readouts / "before-rerun"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "metrics.jsonl", "".join(lost))
    for path in (again.metrics, again.config):  # copied: killed here, `again` still goes on from its state
        write_text(run.path / path.name, path.read_text())
    for folder in steps_in(again.states).values():
        move(folder, run.states)
    for name in ("averages", "resume"):
        if (again.path / name).is_dir():
            replaced = run.path / (REPLACED + name)  # what a kill leaves of it, `tidy` puts back
            shutil.rmtree(replaced, ignore_errors=True)
            if (run.path / name).exists():
                (run.path / name).rename(replaced)
            (again.path / name).rename(run.path / name)
            shutil.rmtree(replaced, ignore_errors=True)
    forget(run.path, appended := ("provenance.jsonl", "timing.jsonl"))
    for name in appended:
        with (run.path / name).open("a") as file:
            file.write((again.path / name).read_text())
    shutil.rmtree(again.path)
    return True


def keyed(rows: list[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    """The rows by what they are of, see KEY."""
    return {tuple(r.get(name) for name in KEY): r for r in rows}


def whole_steps_in(root: Path) -> dict[int, Path]:
    """The committed step folders under `root` that are not damaged."""
    found = {}
    for step, folder in steps_in(root).items():
        with suppress(Damaged):
            verify(folder)
            found[step] = folder
    return found


def move(folder: Path, root: Path) -> None:
    """Moves a committed folder into `root`, in place of one of its name."""
    root.mkdir(exist_ok=True)
    if (root / folder.name).exists():
        remove(root / folder.name)
    folder.rename(root / folder.name)
