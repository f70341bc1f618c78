"""Checkpoint files as inputs of an average: their order, and the steps in their names."""

from __future__ import annotations

import re
from pathlib import Path

from lawa_exp.system.errors import UserError


def oldest_first(paths: list[Path]) -> list[Path]:
    """In order of the steps in their names (a shell puts ckpt_1000.pt before ckpt_900.pt), else as listed."""
    steps = named_steps(paths)
    return paths if steps is None else [path for _, path in sorted(zip(steps, paths, strict=True))]


def named_steps(paths: list[Path]) -> list[int] | None:
    """The steps in their names, else in Lightning's files, else in their folders' names; None: two have the same."""
    from lawa_exp.formats.steps import step_in, steps_inside

    def in_names(names: list[str]) -> list[int] | None:
        steps = [step for name in names if (step := step_in(name)) is not None]
        return steps if len(set(steps)) == len(paths) else None

    return (
        in_names([path.name for path in paths]) or steps_inside(paths) or in_names([path.parent.name for path in paths])
    )


def natural(text: str) -> list[int | str]:
    """A key that sorts step_900 before step_1000."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def trajectory(folder: Path) -> dict[int, Path]:
    """The snapshots of one of our runs, or the checkpoints of another folder by the step in their names."""
    from lawa_exp.formats.steps import find_checkpoints

    if (folder / "trajectory").is_dir():
        folder = folder / "trajectory"
    checkpoints = find_checkpoints(folder, "--trajectory")
    observed = {step: path for step, path in checkpoints.items() if step > 0}
    if not observed:
        raise UserError(f"--trajectory={folder}: only the initial weights (step 0) are there, which are never observed")
    if first := checkpoints.get(0):
        print(
            f"note: {first.name} is of step 0, the initial weights, which no average takes in; "
            "where names count from 0, list the files instead"
        )
    return observed
