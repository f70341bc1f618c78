"""How one run stands, from the small files of its folder; no file is opened that grows with the model."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from lawa_exp.launch.slurm.queue import Job, queue
from lawa_exp.status.runs import Listed
from lawa_exp.storage.checksums import read_bytes
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.rows import read_starts
from lawa_exp.storage.rundir import MARKERS, Facts, RunDir
from lawa_exp.system import heartbeat
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import open_regular
from lawa_exp.system.heartbeat import Beat

# In the order in which they are shown: what needs a person, what goes on, what is over.
STATES = (
    *("damaged", "failed", "lost", "diverged", "stopped"),
    *("running", "starting", "queued", "submitted", "not started", "done"),
)
READERS = 16  # threads: a network file system answers many small questions at once
TAIL = 4096  # bytes, more than a row of metrics.jsonl has
SILENT = 120  # seconds without a step that are told
STEPS = re.compile(rb"^steps: (\d+)$", re.MULTILINE)  # of config.yaml: parsing 1,000 of them takes 10 seconds


@dataclass(frozen=True)
class Standing:
    """How a run stands. since: unix time of what made it so, or of its last sign of life; note: one line.

    tokens_per_second (images of an image model, see `unit`) and seconds_left: while it runs. starts: of its process.
    """

    run: Listed
    state: str
    step: int | None = None
    steps: int | None = None
    starts: int = 0
    since: float | None = None
    note: str = ""
    job: str | None = None
    tokens_per_second: float | None = None
    unit: str = "token"
    seconds_left: float | None = None

    @property
    def restarts(self) -> int:
        return max(self.starts - 1, 0)

    def as_json(self) -> dict[str, object]:
        names = ("state", "step", "steps", "tokens_per_second", "unit", "seconds_left", "restarts", "since", "job")
        content = {name: getattr(self, name) for name in (*names, "note")}
        return {"run_dir": str(self.run.path), "overrides": list(self.run.overrides), **content}


@dataclass
class Files:
    """What lies in the run directory (nothing: it was not started)."""

    run: Listed
    names: frozenset[str] = frozenset()
    beat: Beat | None = None
    started: int = 0  # how often
    last_job: str | None = None  # that of the last start, where its provenance names one
    damage: Standing | None = None

    @property
    def job(self) -> str | None:
        """The newest SLURM job that is known of."""
        started = (self.beat["job"] if self.beat else None) or self.last_job
        submitted_last = self.run.job and (self.run.submitted or 0) >= self.beat_time
        return self.run.job if submitted_last else started or self.run.job

    @property
    def beat_time(self) -> float:
        return self.beat["time"] if self.beat else 0.0


def standings(runs: list[Listed], now: float) -> tuple[list[Standing], str]:
    """How the runs stand at the unix time `now`, in their order; and why SLURM's queue could not be read, if so."""
    with ThreadPoolExecutor(READERS) as pool:
        folders = list(pool.map(look_at, runs))
        jobs = {files.job for files in folders if files.job and not is_over(files)}
        queued, problem = in_queue(jobs)

        def standing(files: Files) -> Standing:
            """One odd run is no reason to say nothing of the others."""
            try:
                return files.damage or stand(files, queued, now)
            except (Failed, UserError, OSError, ValueError, KeyError, TypeError) as error:
                return damaged(files.run, error)

        return list(pool.map(standing, folders)), problem


def damaged(run: Listed, error: Exception) -> Standing:
    known = isinstance(error, Failed | UserError | OSError)
    return Standing(run, "damaged", note=str(error) if known else f"{type(error).__name__}: {error}")


def is_over(files: Files) -> bool:
    """Whether it has ended for good, and was not submitted again (for more steps) since."""
    marker = next((name for name in ("DONE", "DIVERGED") if name in files.names), None)
    return marker is not None and (files.run.submitted or 0) <= (modified(files.run.path / marker) or 0)


def in_queue(jobs: set[str]) -> tuple[dict[str, Job] | None, str]:
    """Those of the jobs that are in SLURM's queue; None, and why, where it cannot be read."""
    try:
        return queue(jobs) if jobs else {}, ""
    except Failed as error:
        return None, f"{error}: which jobs are queued is not known"


def look_at(run: Listed) -> Files:
    files = Files(run)
    with suppress(OSError):
        files.names = frozenset(entry.name for entry in os.scandir(run.path))
    if heartbeat.NAME in files.names:
        files.beat = heartbeat.read(run.path / heartbeat.NAME)
        if files.beat is None and (run.path / heartbeat.NAME).exists():  # else its process has just ended
            files.damage = damaged(run, Failed(f"{run.path / heartbeat.NAME} is damaged; a live process renews it"))
    if "provenance.jsonl" in files.names:
        try:
            starts = read_starts(run.path)
            files.started = len(starts)
            files.last_job = (starts[-1].get("slurm") or {}).get("job") if starts else None
        except (Failed, UserError, OSError, AttributeError) as error:
            files.damage = damaged(run, error)
    return files


def stand(files: Files, queued: dict[str, Job] | None, now: float) -> Standing:
    """How the run stands. queued: the jobs in the queue; None, where it is not known."""
    run = files.run
    beat: Beat = files.beat or {}
    marker = next((name for name in MARKERS if name in files.names), None)
    facts = read_facts(run.path / marker) if marker else Facts()
    steps = run.steps or beat.get("steps") or read_steps(run.path)

    def standing(state: str, step: int | None, since: float | None, note: str = "") -> Standing:
        return Standing(run, state, step, steps, files.started, since, note, files.job)

    alive = bool(beat) and heartbeat.is_alive(beat, now)
    if alive and ("step" in beat or marker not in ("DONE", "DIVERGED")):  # else it is only being read out
        if "step" not in beat:
            return standing("starting", None, beat["time"], f"on {beat['host']}")
        silent = now - beat["stepped"]
        note = f"on {beat['host']}" + (f", no step for {duration(silent)}" if silent > SILENT else "")
        note += ", again (rerun)" if marker else ""
        return replace(
            standing("running", beat["step"], beat["time"], note),
            tokens_per_second=beat["tokens_per_second"],
            seconds_left=beat["seconds_left"],
            unit=beat["unit"],
        )
    step = facts.get("step") or beat.get("step") or last_step(run.path / "metrics.jsonl")
    ended = modified(run.path / marker) if marker else None
    if marker == "DIVERGED" or (marker == "DONE" and step and step >= (run.steps or 0)):
        return standing(marker.lower(), step, ended)
    job = (queued or {}).get(files.job or "")
    if job and job.state == "PENDING":
        return standing("queued", step, run.submitted, job.reason)
    if job and job.state in ("RUNNING", "CONFIGURING") and (job.started or now) >= max(files.beat_time, ended or 0):
        return standing("starting", step, job.started, f"job {files.job}")
    if marker == "FAILED":
        return standing("failed", step, ended, last_line(facts))
    if marker == "STOPPED":
        return standing("stopped", step, ended, "the same command goes on")
    if marker == "DONE":
        return standing("not started", step, ended, f"{run.steps:,} steps are wanted now")
    if files.started or beat:
        since = beat.get("time") or modified(run.path / "timing.jsonl") or modified(run.path / "provenance.jsonl")
        return standing("lost", step, since, goes_on(run.path) + (f", was on {beat['host']}" if beat else ""))
    if run.job and queued is None:
        return standing("submitted", None, run.submitted, f"job {run.job}")
    if run.job:
        return standing("lost", None, run.submitted, f"job {run.job} left the queue without starting it; see its log")
    return standing("not started", None, None)


def read_facts(path: Path) -> Facts:
    """What a marker says. Failed: it is damaged."""
    try:
        content = json.loads(read_bytes(path))
    except ValueError:
        content = None
    if not isinstance(content, dict) or type(content.get("step", 0)) is not int:
        raise Failed(f"{path} is damaged: its training's command writes it anew")
    return cast(Facts, content)  # `RunDir.mark` wrote it


def read_steps(run: Path) -> int | None:
    with suppress(FileNotFoundError, UserError):
        line = STEPS.search(read_bytes(run / "config.yaml"))
        return int(line[1]) if line else None
    return None


def last_step(path: Path) -> int | None:
    """The step of the last whole row."""
    with suppress(OSError, ValueError, KeyError, IndexError), open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        step: int = json.loads(file.read().rpartition(b"\n")[0].splitlines()[-1])["step"]
        return step
    return None


def modified(path: Path) -> float | None:
    with suppress(OSError):
        return path.stat().st_mtime
    return None


def last_line(facts: Facts) -> str:
    """The last line of an error, with the error's name where another line has it."""
    lines = [line.strip() for line in str(facts.get("reason") or facts.get("traceback") or "").splitlines()]
    lines = [line for line in lines if line]
    name = lines[0].split(":")[0] if lines else ""
    return (f"{name}: ... " if len(lines) > 1 else "") + lines[-1] if lines else "its marker does not say why"


def goes_on(run: Path) -> str:
    """Where a run that was killed goes on."""
    saved = steps_in(RunDir(run).resume)
    return f"goes on from step {max(saved):,}" if saved else "no state saved yet"


UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """`2 d 3 h`, `1 h 5 min`, `42 s`: two units at most."""
    left, parts = max(0, round(seconds)), []
    for unit, size in UNITS:
        if left >= size or unit == "s":
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(p for p in parts[:2] if not p.startswith("0 ")) or "0 s"
