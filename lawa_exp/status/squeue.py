"""What SLURM's queue says of the jobs of a sweep. There may be no accounting: a job that ended is just not in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

WAIT = 20  # seconds for squeue's answer


@dataclass(frozen=True)
class Job:
    """state: PENDING, RUNNING, ...; started: unix seconds (of a pending job when it may start; None: not known)."""

    state: str
    started: float | None
    reason: str


def ask_queue(jobs: Iterable[str]) -> tuple[dict[str, Job] | None, str]:
    """The jobs (`123`, or `123_4` of an array) that are in the queue; None, and why, where it cannot be asked."""
    if not shutil.which("squeue"):
        return None, "no squeue on this machine: which jobs are queued is not known"
    ids = ",".join(sorted({job.split("_")[0] for job in jobs}))
    command = ["squeue", "--noheader", "--array", "--jobs", ids, "--format", "%i %T %S %r"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=WAIT, env={**os.environ, "SLURM_TIME_FORMAT": "%s"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"squeue: {error}"
    if done.returncode and "Invalid job id" not in done.stderr:  # the only one asked for has left the queue
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return None, f"{said[-1]}: which jobs are queued is not known"
    found = {}
    for line in done.stdout.splitlines():
        id, state, started, *reason = line.split(maxsplit=3)
        found[id] = Job(state, float(started) if started.isdecimal() else None, *(reason or [""]))
    return found, ""
