"""`-m hydra/launcher=slurm`: shows what there is to do, pins code and configuration, queues one array and returns."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shlex
import shutil
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lawa_exp.averaging.needs import problem_with
from lawa_exp.axes.configuration import Unresolved
from lawa_exp.launch.slurm import queue
from lawa_exp.launch.slurm.pin import pin
from lawa_exp.launch.slurm.settings import Slurm
from lawa_exp.launch.slurm.worker import work, write_pinned
from lawa_exp.runs.folder import check_folder
from lawa_exp.runs.plan import show_plan
from lawa_exp.runs.prepare import Prepared
from lawa_exp.runs.sweep import Entry, Sweep, gather, sweep_folder
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.origin import snapshots_of
from lawa_exp.storage.rows import averager_ids, read_rows
from lawa_exp.storage.rundir import EXIT, RunDir
from lawa_exp.system import heartbeat, signals
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import locked

POLL = 5  # seconds between two looks at the queue, where the command waits


def submit(entries: list[Entry], overrides: list[list[str]], cluster: Slurm) -> int:
    """Queues the trainings of a multirun that are neither done, queued nor running; returns the exit code."""
    options = entries[0][1]
    unknown = check(cluster, options.plan)
    if options.rerun:
        raise UserError(
            "rerun=true: not with hydra/launcher=slurm; one run after another does it, or launch/sbatch_single.sh"
        )
    name = entries[0][0].device
    device = torch.device("cuda" if name.startswith("cuda") or (name == "auto" and cluster.gpus) else "cpu")
    ranks = Ranks(0, cluster.ranks, 0, cluster.ranks_per_node)
    folder = sweep_folder(options)
    threaded = [(with_threads(unresolved, cluster), of_entry) for unresolved, of_entry in entries]
    sweep = gather(threaded, overrides, device, ranks)
    print("\n".join([f"sweep_dir={folder}", *sweep.summary]))
    for training, members in sweep.trainings:
        check_folder(RunDir(training.run_dir), training)
        plan = show_plan(training, ranks)  # also where only what it refuses is of interest
        if options.plan:
            print(f"\n{sweep.described(members)}\nrun_dir={training.run_dir}\n{plan}")
    if options.plan:
        if unknown:
            print(f"{unknown}: which of these are queued or running is not known")
        else:
            show(sweep, standings(sweep))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".submitting", f"sweep={options.sweep.name}"):
        found = standings(sweep)
        show(sweep, found)
        sweep.write_manifest()
        jobs = send(sweep, found, cluster)
    sys.stdout.flush()
    if cluster.wait:
        return wait(sweep)
    if jobs:
        print(f"submitted; python -m lawa_exp.status {folder} shows them, this command again submits what is missing")
    print(f"python -m lawa_exp.summary {folder} makes the tables of what is done")
    return 0


def check(cluster: Slurm, plan: bool = False) -> str:
    """UserError where nothing can be submitted here, or no run of it would get anywhere.

    plan: nothing is submitted; returns why there is no cluster to ask, which a plan needs not, or nothing.
    """
    if cluster.grace >= cluster.seconds:
        raise UserError(
            f"hydra.launcher.grace={cluster.grace}: expected fewer seconds than hydra.launcher.time={cluster.time} has "
            f"({cluster.seconds:,}); a run saves so long before its end, and would be at once"
        )
    if plan and not shutil.which("sbatch"):
        return "no SLURM on this machine"
    if not plan and importlib.util.find_spec("submitit") is None:
        raise UserError("hydra/launcher=slurm: the package submitit is missing; pip install 'lawa_exp[slurm]'")
    try:
        queue.check_cluster(cluster.partition)
    except Failed as error:
        if not plan:
            raise
        return f"SLURM does not answer ({error})"
    return ""


def with_threads(unresolved: Unresolved, cluster: Slurm) -> Unresolved:
    """The CPU threads of a rank are those that the cluster gives it, not this machine's."""
    return replace(unresolved, trainer=unresolved.trainer.filled(threads=cluster.cpus_per_task))


@dataclass(frozen=True)
class Standing:
    """What there is of a training: a word, what more to say, its job in the queue, whether it is to be submitted."""

    word: str
    more: str = ""
    job: str | None = None
    due: bool = False


def standings(sweep: Sweep) -> list[Standing]:
    """How each training of the sweep stands, by its folder and by the cluster's queue."""
    everywhere = [path.parent for path in sweep.folder.parent.glob(f"*/{queue.SUBMITTED}")]
    jobs = queue.settled(everywhere)
    return [standing(training, jobs.get(training.run_dir.resolve()), sweep.folder) for training, _ in sweep.trainings]


def standing(training: Prepared, active: tuple[queue.Job, Path] | None, sweep: Path) -> Standing:
    """active: the run's job in the queue, and the folder of the sweep that submitted it."""
    if active:
        job, by = active
        of = "" if by.resolve() == sweep.resolve() else f" of the sweep {by.name}"
        word = {"RUNNING": "running", queue.ENDING: "ending"}.get(job.state, "queued")
        return Standing(word, f"job {job.id}{of}", job.id)
    run = RunDir(training.run_dir)
    beat = heartbeat.read(run.heartbeat.path)
    if beat and beat.get("job") is None and heartbeat.is_alive(beat, time.time()):
        return Standing("running", f"outside SLURM, on {beat['host']}")
    marker, facts = run.marker() or ("", {})
    end = training.config.steps
    if marker == "DIVERGED":
        return Standing("diverged", f"after step {facts['step']:,}")
    if marker == "DONE" and facts["step"] >= end:
        known = set(averager_ids(read_rows(run.metrics, trained=False))) | {
            path.name for path in run.readouts.glob("*")
        }
        lacking = [a for a in training.config.averagers if a.id not in known and a.needed(end)]
        saved = set(snapshots_of(run)) if lacking else set()
        cannot = [f"{a.id} cannot be read out: {why}" for a in lacking if (why := problem_with(a, saved, end))]
        if len(cannot) == len(lacking):
            return Standing("done", "; ".join(cannot))
        return Standing("to read out", ", ".join(a.id for a in lacking), due=True)
    states = list(steps_in(run.resume))
    if marker == "FAILED":
        return Standing("failed", str(facts.get("reason", "")), due=True)
    return Standing("to continue", f"from step {states[-1]:,}", due=True) if states else Standing("new", due=True)


def show(sweep: Sweep, runs: list[Standing]) -> None:
    """One line for each training, with what its entries do not share with all others, and how many are of each kind."""
    shared = set.intersection(*map(set, sweep.overrides))
    for (training, members), s in zip(sweep.trainings, runs, strict=True):
        mine = " | ".join(" ".join(o for o in sweep.overrides[i] if o not in shared) for i in members)
        print(f"  {s.word:12} {training.run_dir}  {f'[{mine}]  ' if mine else ''}{s.more}".rstrip())
    counts = Counter(s.word for s in runs)
    print(", ".join(f"{n} {word}" for word, n in counts.items()) + f"; {sum(s.due for s in runs)} to submit")


def send(sweep: Sweep, runs: list[Standing], cluster: Slurm) -> list[str]:
    """Submits what is due, cool-downs to start after the stable runs that they go on from; returns the jobs' ids."""
    due: dict[Path, list[Prepared]] = {}  # one job works through all budgets of a training
    for (training, _), s in zip(sweep.trainings, runs, strict=True):
        if s.due:
            due.setdefault(training.run_dir, []).append(training)
    if not due:
        return []
    code = pin(sweep.folder / "code", {name for p, _ in sweep.trainings if p.code for name in p.code.sources})
    first = {run_dir: chain for run_dir, chain in due.items() if run_dir in sweep.stable}
    rest = {run_dir: chain for run_dir, chain in due.items() if run_dir not in sweep.stable}
    before = [s.job for (p, _), s in zip(sweep.trainings, runs, strict=True) if p.run_dir in sweep.stable and s.job]
    sent = send_array(sweep, first, cluster, code, []) if first else []
    return sent + (send_array(sweep, rest, cluster, code, before + sent) if rest else [])


def send_array(
    sweep: Sweep, due: dict[Path, list[Prepared]], cluster: Slurm, code: Path, after: list[str]
) -> list[str]:
    """One array with a job for each run directory, which starts once the jobs `after` have succeeded; the jobs' ids.

    Recorded at once. Killed in between, a run may be queued twice; its lock and its marker let one of the two train.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = sweep.folder / "slurm"
    folder.mkdir(exist_ok=True)
    pinned: list[list[str]] = []
    for run_dir, chain in due.items():
        paths = [sweep.folder / "configs" / f"{run_dir.name}-{p.config.steps}.yaml" for p in chain]
        for path, training in zip(paths, chain, strict=True):
            write_pinned(path, training, sys.argv[1:])
        pinned.append([str(path.resolve()) for path in paths])
    run_dirs = folder.resolve() / f"run_dirs-{uuid.uuid4().hex[:8]}"  # a line for each job of the array
    run_dirs.write_text("".join(f"{run_dir.resolve()}\n" for run_dir in due))
    executor = submitit.SlurmExecutor(folder=folder.resolve())
    executor.update_parameters(**parameters(cluster, sweep.folder.name, code.resolve(), run_dirs, after))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what sbatch says is in the error
            jobs = executor.map_array(work, pinned)
    except (FailedSubmissionError, FailedJobError) as error:
        said = [line for line in str(error).splitlines() if not line.startswith("Try ")]
        reason = [line for line in said if "error:" in line] or said
        raise UserError(f"hydra/launcher=slurm: the cluster refused: {reason[-1].removeprefix('sbatch: ')}") from None
    ids = [job.job_id for job in jobs]
    queue.record(sweep.folder, dict(zip(due, ids, strict=True)))
    print(f"job {ids[0].split('_')[0]}: {len(ids)} runs" + (f", after {', '.join(after)}" if after else ""))
    return ids


def parameters(cluster: Slurm, sweep: str, code: Path, run_dirs: Path, after: list[str]) -> dict[str, object]:
    """What submitit writes into its sbatch script.

    After each start the script asks `requeue.py` whether the run goes on. The shell's trap lets it live to do so.
    """
    extra = {"requeue": True, **(cluster.extra or {})}
    if after:
        extra |= {"dependency": "afterok:" + ":".join(after), "kill-on-invalid-dep": "yes"}
    threads = cluster.cpus_per_task
    asked = {
        "job_name": queue.job_name(sweep),
        "partition": cluster.partition,
        "account": cluster.account,
        "time": cluster.time,
        "signal_delay_s": cluster.grace,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.ranks_per_node,
        "cpus_per_task": threads,
        "gpus_per_node": cluster.gpus_per_node or None,
        "gres": cluster.gres,
        "mem": cluster.memory,
        "constraint": cluster.constraint,
        "qos": cluster.qos,
        "array_parallelism": cluster.parallel,
    }
    python = shlex.quote(sys.executable)
    return {
        **{name: value for name, value in asked.items() if value is not None},
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": extra,
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={threads}"],
        "setup": [
            *cluster.setup,
            "trap : TERM USR1 USR2",
            f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}:$PWD${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export OMP_NUM_THREADS={threads}",
        ],
        "teardown": [
            "code=$?",
            f'run_dir=$(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" {shlex.quote(str(run_dirs))})',
            f'{python} -m lawa_exp.launch.slurm.requeue "$run_dir" $code',
            "exit $code",
        ],
    }


def wait(sweep: Sweep) -> int:
    """Returns when no run of the sweep is queued or running: 0 if all are done, else 1; a stop ends the waiting."""
    runs = standings(sweep)
    while any(s.job for s in runs):
        time.sleep(POLL)
        if signals.stop_requested():
            return EXIT["stopped"]
        runs = standings(sweep)
    show(sweep, runs)
    return EXIT["failed"] if any(s.due for s in runs) else EXIT["done"]
