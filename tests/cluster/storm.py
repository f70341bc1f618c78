"""The storm: a sweep on a one-node SLURM cluster whose runs are interrupted at seeded moments, in every way there is.

    python tests/cluster/storm.py --out results/storm.md      (as root: it starts a cluster, or uses that of SLURM_CONF)

Afterwards every run has the same bytes as its undisturbed twin, and nothing is lost, doubled or left running.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]

from helpers import contents, markers, rows, states, tiny  # noqa: E402

from lawa_exp.launch import compose  # noqa: E402
from lawa_exp.launch.slurm import queue  # noqa: E402

FORK = multiprocessing.get_context("fork")  # of a process that has imported torch
GRACE = 5  # seconds before its time limit in which a run is told to save
RESUBMIT = 5  # seconds between two submissions of the whole sweep
STARTING = 3.0  # seconds of a start in which it is struck while it begins
AGAIN = 20.0  # seconds after which a start that lives on is struck again
EVERY = 15  # steps between two states
SAVES = 2  # states that a start may save before it is struck


@dataclass
class Run:
    """What the storm knows of a run. due: when its present start is struck (None: it is not running)."""

    due: Due | None = None
    strikes: list[str] = field(default_factory=list)


@dataclass
class Due:
    """A strike: not before `time` or the run's state of `step`; in_save: while a state is being written."""

    time: float
    step: int
    kind: str
    in_save: bool


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=12)
    p.add_argument("--interruptions", type=int, default=100, help="at least so many")
    p.add_argument("--steps", type=int, default=900)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--limit", type=float, default=3600, help="seconds after which it is given up")
    p.add_argument("--folder", type=Path, help="where the runs go (default: a temporary folder)")
    p.add_argument("--out", type=Path, help="the page with the figures")
    args = p.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="storm-")))
        folder.mkdir(parents=True, exist_ok=True)
        if "SLURM_CONF" not in os.environ:
            stack.enter_context(cluster(folder / "cluster"))
        text = storm(args, folder.resolve())
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return 0


@contextlib.contextmanager
def cluster(folder: Path):
    script = str(HERE.with_name("cluster.sh"))
    subprocess.run([script, "up", str(folder)], check=True, stdout=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        yield
    finally:
        subprocess.run([script, "down", str(folder)], check=True)


def sweep_arguments(args: argparse.Namespace, root: Path) -> list[str]:
    """The sweep: seeds by peak rates; two entries of each training differ only in averaging."""
    seeds = ",".join(map(str, range((args.runs + 1) // 2)))
    settings = [f"steps={args.steps}", f"save.every={EVERY}", "trajectory.every=50", "spacing=50", "evaluate.every=150"]
    swept = [f"seed={seeds}", "lr.peak=3e-3,1e-3", "k=2,3", "avg=[lawa,ema,swa]"]
    return ["-m", *tiny(*settings), *swept, f"runs_root={root}", "sweep=storm"]


def quietly(function: Callable[[], int]) -> str:
    """What it printed; it must end well."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = function()
    assert code == 0, f"exit code {code}: {out.getvalue()}"
    return out.getvalue()


def storm(args: argparse.Namespace, folder: Path) -> str:
    began = time.monotonic()
    rng = random.Random(args.seed)
    local = [sys.executable, "-m", "lawa_exp", *sweep_arguments(args, folder / "twins")]
    twins = subprocess.Popen(local, stdout=subprocess.DEVNULL, cwd=folder)  # undisturbed, one after another
    launcher = ["hydra/launcher=slurm", "hydra.launcher.time=30", f"hydra.launcher.grace={GRACE}"]
    arguments = [*sweep_arguments(args, folder / "runs"), *launcher]
    sys.argv = ["lawa_exp", *arguments]
    sweep = folder / "runs" / "sweeps" / "storm"
    print(quietly(lambda: compose.command(arguments)), flush=True)
    runs = {Path(line["run_dir"]): Run() for line in queue.read_record(sweep)}
    assert len(runs) == args.runs, f"{len(runs)} runs"
    kinds = [kind for _ in range(args.interruptions) for kind in rng.sample([*STRIKES], len(STRIKES))]
    submissions, submitted_at, in_a_save = 1, time.monotonic(), Counter()
    submission = None
    while True:
        assert time.monotonic() - began < args.limit, "given up: the limit has passed"
        jobs = queue.queue()
        mine = [line for line in queue.read_record(sweep) if line["job"] in jobs]
        doubled = [run for run, n in Counter(line["run_dir"] for line in mine).items() if n > 1]
        assert not doubled, f"queued twice: {doubled}"
        active = {Path(line["run_dir"]): jobs[line["job"]] for line in mine}
        for run_dir, run in runs.items():
            job = active.get(run_dir)
            if job is None or job.state != "RUNNING" or markers(run_dir) == ["DONE"]:
                run.due = None
                continue
            if run.due is None and kinds and sum(len(r.strikes) for r in runs.values()) < args.interruptions:
                run.due = choose(rng, run_dir, kinds.pop())
            if run.due and time.monotonic() >= run.due.time and newest(run_dir) >= run.due.step:
                seen = run.due.in_save and wait_for_save(run_dir)
                if STRIKES[run.due.kind](job.id, run_dir):
                    run.strikes.append(run.due.kind)
                    in_a_save[run.due.kind] += seen
                run.due.time, run.due.step = time.monotonic() + AGAIN, 0  # should this start live on
        unfinished = [run_dir for run_dir in runs if run_dir not in active and markers(run_dir) != ["DONE"]]
        if not active and not unfinished:
            break
        if submission and not submission.is_alive():
            assert submission.exitcode == 0, f"the submission ended with {submission.exitcode}"
            submission, submitted_at = None, time.monotonic()
        if unfinished and not submission and time.monotonic() - submitted_at > RESUBMIT:
            submission = FORK.Process(target=quietly, args=(lambda: compose.command(arguments),))
            submission.start()  # beside, so that striking goes on
            submissions += 1
        time.sleep(0.1)
    stormed = time.monotonic() - began
    assert twins.wait() == 0, "the undisturbed sweep failed"
    return report(args, folder, runs, in_a_save, submissions, stormed)


def choose(rng: random.Random, run_dir: Path, kind: str) -> Due:
    """When a start that has just begun is struck: as it begins, or a few states later."""
    now = time.monotonic()
    if rng.random() < 0.3:
        return Due(now + rng.uniform(0, STARTING), 0, kind, False)
    return Due(now, newest(run_dir) + EVERY * rng.randint(1, SAVES), kind, rng.random() < 0.7)


def newest(run_dir: Path) -> int:
    """The step of the newest state, rounded down to the regular ones."""
    return max(states(run_dir), default=0) // EVERY * EVERY


def wait_for_save(run_dir: Path, limit: float = 1.0) -> bool:
    """Returns as soon as a state is being written; False where none was within the limit."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            if any(path.name.startswith(".partial-") for path in (run_dir / "resume").iterdir()):
                return True
        time.sleep(0.0005)
    return False


def tell(name: str) -> Callable[[str, Path], bool]:
    return lambda job, _: ok("scancel", f"--signal={name}", job)


def ok(*words: str) -> bool:
    """Whether SLURM took it; scancel repeats a signal for minutes where the step ends meanwhile, so it is cut short."""
    try:
        return subprocess.run(words, capture_output=True, timeout=3).returncode == 0
    except subprocess.TimeoutExpired:
        return True


def kill(job: str, run_dir: Path) -> bool:
    """SIGKILL to the training process alone."""
    found = [pid for pid in workers(run_dir.parent) if environment(pid).get("LAWA_JOB") == job]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


def workers(root: Path) -> list[int]:
    """The processes of submitit that work for this sweep."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().decode().split("\0")
            if "submitit.core._submit" in words and any(w.startswith(str(root)) for w in words) and words[0] != "srun":
                found.append(int(path.name))
    return found


def environment(pid: int) -> dict[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:
        return {}
    found = dict(w.split("=", 1) for w in words if "=" in w)
    array, index = found.get("SLURM_ARRAY_JOB_ID"), found.get("SLURM_ARRAY_TASK_ID")
    return found | {"LAWA_JOB": f"{array}_{index}" if array else found.get("SLURM_JOB_ID", "")}


STRIKES: dict[str, Callable[[str, Path], bool]] = {
    "SIGTERM": tell("TERM"),
    "SIGUSR1": tell("USR1"),
    "SIGUSR2": tell("USR2"),
    "SIGKILL": kill,
    "scontrol requeue": lambda job, _: ok("scontrol", "requeue", job),
    "scancel, submitted again": lambda job, _: ok("scancel", job),
    "time limit": lambda job, _: ok("scontrol", "update", f"JobId={job}", f"EndTime=now+{GRACE}"),
}


def report(
    args: argparse.Namespace, folder: Path, runs: dict[Path, Run], in_a_save: Counter, submissions: int, seconds: float
) -> str:
    """The page; AssertionError where a run is not its twin, or something is left."""
    lines = []
    starts = 0
    for run_dir, run in runs.items():
        twin = folder / "twins" / run_dir.name
        mine, other = contents(run_dir), contents(twin)
        different = sorted(f for f in mine.keys() | other.keys() if mine.get(f) != other.get(f))
        assert not different, f"{run_dir} is not its twin: {different}"
        assert "metrics.jsonl" in mine and states(run_dir)[-1] == args.steps and markers(run_dir) == ["DONE"]
        begun = len(rows(run_dir, "provenance.jsonl"))
        starts += begun
        lines.append(f"| {run_dir.name} | {len(run.strikes)} | {begun} | {len(mine)} |")
    left = [*workers(folder), *queue.queue()]
    assert not left, f"left running: {left}"
    partial = [p for p in (folder / "runs").rglob(".partial-*")]
    assert not partial, f"left behind: {partial}"
    assert len({p.name for p in (folder / "twins").glob("gpt*")}) == len(
        {p.name for p in (folder / "runs").glob("gpt*")}
    )
    kinds = Counter(kind for run in runs.values() for kind in run.strikes)
    total = sum(kinds.values())
    assert total >= args.interruptions, f"only {total} interruptions"
    asked = [f"--{name}={getattr(args, name)}" for name in ("runs", "interruptions", "steps", "seed")]
    command = shlex.join(["python", "tests/cluster/storm.py", *asked, "--out=results/storm.md"])
    table = [f"| {kind} | {kinds[kind]} | {in_a_save[kind]} |" for kind in STRIKES]
    return "\n".join(
        [
            "# Storm: a sweep on a SLURM node that keeps interrupting it",
            "",
            f"    {command}",
            "",
            f"{len(runs)} runs of {args.steps} steps (two entries each, for averaging), a state every {EVERY} "
            f"steps, two at a time on one node; {total} interruptions in {seconds:.0f} seconds, {starts} starts, "
            f"{submissions} submissions of the same command.",
            "Every run ended with the bytes of its undisturbed twin (a sweep without a launcher): metrics.jsonl, "
            "snapshots, averages, states and read-outs. No run was queued twice; no process, job or half-written "
            "folder was left.",
            "",
            "| interruption | times | of these while a state was being written |",
            "|---|---|---|",
            *table,
            f"| all | {total} | {sum(in_a_save.values())} |",
            "",
            "| run | interruptions | starts | files equal to the twin's |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
