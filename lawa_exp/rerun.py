"""`rerun=true`: a training done again beside the first, compared byte for byte, and what was not saved filled in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

from lawa_exp.checkpoint.commit import MANIFEST, steps_in
from lawa_exp.metrics import encode, read_rows
from lawa_exp.rundir import RunDir


def merge_rerun(again: RunDir, run: RunDir, say: Callable[[str], None]) -> bool:
    """Takes the finished run `again` over into `run`; False, and nothing taken over, where their bytes differ.

    Killed half-way it can be done again: what was moved already is found in place.
    """
    different = []
    before, after = steps_in(run.trajectory), steps_in(again.trajectory)
    for step in before.keys() & after.keys():
        if json.loads((before[step] / MANIFEST).read_text()) != json.loads((after[step] / MANIFEST).read_text()):
            different.append((step, "snapshot"))
    first = {(r["step"], r["split"], r["weights"]): encode(r) for r in read_rows(run.metrics)}
    second = {(r["step"], r["split"], r["weights"]): encode(r) for r in read_rows(again.metrics)}
    different += [
        (key[0], f"{key[1]} row of {key[2]}") for key in first.keys() & second.keys() if first[key] != second[key]
    ]
    if different:
        step, what = min(different)
        say(
            f"error: the rerun differs from the first training, first in the {what} of step {step:,}; "
            f"it is kept in {again.path}"
        )
        return False
    say(
        f"the rerun equals the first training: {len(before.keys() & after.keys())} snapshots, "
        f"{len(first.keys() & second.keys())} rows"
    )
    for step in sorted(after.keys() - before.keys()):
        run.trajectory.mkdir(exist_ok=True)
        after[step].rename(run.trajectory / after[step].name)
    lost = [line for key, line in first.items() if key not in second]  # evaluated then, and not asked for now
    if lost:
        folder = run.readouts / "before-rerun"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(lost))
    for name in ("metrics.jsonl", "config.yaml"):
        if (again.path / name).exists():
            (again.path / name).replace(run.path / name)
    for name in ("averages", "resume", "states"):
        if (again.path / name).is_dir():
            shutil.rmtree(run.path / name, ignore_errors=True)
            (again.path / name).rename(run.path / name)
    for name in ("provenance.jsonl", "timing.jsonl"):
        with (run.path / name).open("a") as file:
            file.write((again.path / name).read_text())
    shutil.rmtree(again.path)
    return True
