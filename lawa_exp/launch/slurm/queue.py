"""What the cluster is doing: its partitions, its queue, and which of our runs its jobs are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from lawa_exp.storage.manifest import find_run
from lawa_exp.storage.rows import append_line
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import read_small

SUBMITTED = "submitted.jsonl"  # in a sweep's folder, one line for each run that was queued
ENDING = "COMPLETING"  # the state of a job that is about to leave, or to be queued again: nobody can tell
PATIENCE = 60  # seconds in which it does
WAIT = 60  # seconds for an answer


@dataclass(frozen=True)
class Job:
    """One line of squeue. id: `12`, or `12_3` in an array; state: SLURM's long name; name: the job's.

    reason: why it waits; started: unix seconds, of a waiting job when it may start (None: not known).
    """

    id: str
    state: str
    name: str
    reason: str = ""
    started: float | None = None


class Submitted(TypedDict):
    """A line of submitted.jsonl. time: unix seconds."""

    run_dir: Path
    job: str
    time: float


def check_cluster(partition: str | None) -> None:
    """UserError where there is no SLURM here, or no such partition."""
    if not shutil.which("sbatch"):
        raise UserError(
            "hydra/launcher=slurm: no SLURM on this machine (sbatch is not in PATH); without it the runs are trained "
            "here, one after another"
        )
    known = ask("sinfo", "-h", "-o", "%R").split()
    unknown = [name for name in (partition or "").split(",") if name and name not in known]
    if unknown:
        raise UserError(
            f"hydra.launcher.partition={unknown[0]}: no such partition here; choices: {', '.join(sorted(set(known)))}"
        )


def ask(*words: str) -> str:
    """What a command of SLURM's prints; Failed with its last line where it does not answer."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT, env=environment)
    except FileNotFoundError:
        raise Failed(f"no {words[0]} on this machine") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{words[0]}: {error}") from None
    if done.returncode:
        raise Failed(f"{words[0]}: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
    return done.stdout


def queue(jobs: Iterable[str] = ()) -> dict[str, Job]:
    """The user's jobs that are queued, running or ending, by id; or those with the ids `jobs` (and all of an array).

    There may be no accounting: a job that has ended is just not in it.
    """
    ids = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    whose = ["--jobs", ids] if ids else ["--me"]
    try:
        said = ask("squeue", *whose, "--noheader", "--array", "--format", "%i|%T|%S|%r|%j")
    except Failed as error:
        if ids and "Invalid job id" in str(error):  # the only one asked for has left
            return {}
        raise
    found = {}
    for line in said.splitlines():
        id, state, started, reason, name = line.split("|", 4)
        found[id] = Job(id, state, name, reason, float(started) if started.isdecimal() else None)
    return found


def job_name(sweep: str) -> str:
    return f"lawa_exp-{sweep}"


def record(sweep: Path, jobs: Mapping[Path, str]) -> None:
    """Adds the runs that were submitted, by run directory, to the sweep's record."""
    for run_dir, job in jobs.items():
        append_line(sweep / SUBMITTED, {"run_dir": str(run_dir), "job": job, "time": time.time()})


def read_record(sweep: Path) -> list[Submitted]:
    """The lines of a sweep's record, with the path of the run; half a line that a kill left is passed over."""
    lines: list[Submitted] = []
    path = sweep / SUBMITTED
    for line in read_small(path).decode(errors="replace").splitlines() if path.exists() else []:
        try:
            content = json.loads(line)
            run_dir = find_run(content["run_dir"], sweep)
            lines.append({"run_dir": run_dir, "job": content["job"], "time": content["time"]})
        except (ValueError, KeyError, TypeError):
            continue
    return lines


def settled(sweeps: Iterable[Path]) -> dict[Path, tuple[Job, Path]]:
    """`active`, once the jobs that are ending have left or are queued again; as it is where that takes too long."""
    sweeps = list(sweeps)
    end = time.monotonic() + PATIENCE
    found = active(sweeps, queue())
    while time.monotonic() < end and any(job.state == ENDING for job, _ in found.values()):
        time.sleep(1)
        found = active(sweeps, queue())
    return found


def active(sweeps: Iterable[Path], jobs: Mapping[str, Job]) -> dict[Path, tuple[Job, Path]]:
    """The runs that any of the sweeps has in the queue, by run directory: the job, and the sweep's folder."""
    found = {}
    for sweep in sweeps:
        for line in read_record(sweep):
            job = jobs.get(line["job"])
            if job and job.name == job_name(sweep.name):  # SLURM counts its jobs from 1 again one day
                found[line["run_dir"].resolve()] = (job, sweep)
    return found
