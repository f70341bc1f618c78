"""The weights that a training learns from, besides its data: those of another run, or of a folder.

They are neither of the model nor of the objective: named by trajectory, averager and step, or by their content, they
can be planned for before the run that makes them has begun.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa_exp.config.shared import Teacher
from lawa_exp.storage.commit import Damaged, steps_in, verify
from lawa_exp.storage.origin import fingerprint, is_run, snapshots_of, weight_files
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError

LIVE = "live"


@dataclass(frozen=True)
class TeacherSource:
    """source: a run directory, or a folder or file of weights. identity: what determines the weights."""

    source: Path
    of: str  # live, or an averager's id
    step: int | None
    identity: dict[str, Any]

    def weights(self) -> Path:
        """The file or folder. UserError: the run has no such weights, or it is no checkpoint."""
        if not self.source.exists():
            raise UserError(f"teacher.from={self.source}: no such run, file or folder; train it first")
        if not is_run(self.source):
            weight_files(self.source)
            return self.source
        run = RunDir(self.source)
        saved = snapshots_of(run) if self.of == LIVE else steps_in(run.averages / self.of)
        if self.step not in saved:
            steps = ", ".join(f"{s:,}" for s in saved) or "none"
            ids = ", ".join([LIVE, *run.average_ids])
            raise UserError(
                f"teacher.step={self.step}: {self.source} has no weights {self.of} of that step (it has: {steps}; "
                f"weights: {ids})"
            )
        try:
            verify(saved[self.step])
        except Damaged as error:
            raise UserError(f"teacher.from: {error}") from None
        return saved[self.step]

    def written(self) -> dict[str, Any] | None:
        """The configuration of its run; None of a folder of weights, which are of the model that is trained."""
        return RunDir(self.source).read_config() if is_run(self.source) else None


def find_teacher(teacher: Teacher) -> TeacherSource | None:
    """What `teacher` names; None where there is none. UserError names what is wrong with it."""
    if teacher.from_ is None:
        if teacher.step is not None or teacher.weights != LIVE:
            raise UserError("teacher.from is missing: teacher.weights and teacher.step are about it")
        return None
    source = Path(teacher.from_)
    planned = re.search(r"-([0-9a-f]{12})$", source.name)
    if is_run(source):
        trajectory = (RunDir(source).read_config() or {})["trajectory_id"]
    elif source.exists():
        if teacher.step is not None or teacher.weights != LIVE:
            raise UserError(f"teacher.from={source}: is not a run: these are weights of one step")
        return TeacherSource(source, LIVE, None, {"fingerprint": fingerprint(source)})
    elif planned:
        trajectory = planned[1]
    else:
        raise UserError(
            f"teacher.from={source}: no such run, file or folder, and no name of one that is planned, which ends with "
            "its trajectory id"
        )
    if teacher.step is None:
        raise UserError("teacher.step is missing: the step of the run whose weights teach")
    identity = {"trajectory": trajectory, "weights": teacher.weights, "step": teacher.step}
    return TeacherSource(source, teacher.weights, teacher.step, identity)
