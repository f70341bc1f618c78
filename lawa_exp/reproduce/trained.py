"""The sets of trainings: what they consist of, what is done of them, how the rest is trained, and what they say."""

from __future__ import annotations

import ctypes
import functools
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lawa_exp.averaging import AveragerSettings
from lawa_exp.axes.configuration import Config
from lawa_exp.config.rules import flat
from lawa_exp.launch.compose import cluster_settings, compose, read
from lawa_exp.parallel.sharing import batches_of
from lawa_exp.reproduce.arms import Missing, Run
from lawa_exp.reproduce.book import TrainingSet
from lawa_exp.results.summary import read_run
from lawa_exp.runs.cost import flops_of, planned_model
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.runs.sweep import gather
from lawa_exp.storage.metrics import metrics_in
from lawa_exp.storage.rows import averager_ids, read_lines, read_rows, read_starts
from lawa_exp.storage.rundir import EXIT, RunDir
from lawa_exp.system import signals
from lawa_exp.system.distributed import start_device
from lawa_exp.system.errors import UserError

POLL = 0.5  # seconds
DONE, DIVERGED, MISSING = "done", "diverged", "missing"


@dataclass(frozen=True)
class Training:
    """One training of a set. stable: no member of it, but the run that its cool-downs go on from."""

    prepared: Prepared
    stable: bool = False

    @property
    def folder(self) -> Path:
        return self.prepared.run_dir

    @property
    def config(self) -> Config:
        return self.prepared.config

    @property
    def first(self) -> int:
        """The steps that it takes over from another run."""
        return self.prepared.origin.step if self.prepared.origin else 0

    def state(self) -> str:
        """done; diverged; or missing: not (wholly) trained, or without the evaluation of an average."""
        marker, facts = RunDir(self.folder).marker() or ("", {})
        if marker == "DIVERGED":
            return DIVERGED
        if marker != "DONE" or facts["step"] < self.config.steps:
            return MISSING
        rows, _ = read_run(self.folder, [a.id for a in self.config.averagers], self.config.steps)
        evaluated = set(averager_ids(rows))
        return DONE if all(a.id in evaluated or late(a, self.config) for a in self.config.averagers) else MISSING

    def flops(self) -> float:
        """Of training, by the plan's estimate."""
        batches = batches_of(self.config, self.prepared.facts)
        samples = batches.samples(self.config.steps) - batches.samples(self.first)
        return flops_per_sample(self.config.model, self.prepared) * self.config.passes * samples

    def seconds(self) -> tuple[float, float] | None:
        """(of the steps alone, of the whole run); None where it was not trained in one go."""
        rows, starts = read_lines(self.folder / "timing.jsonl"), read_starts(self.folder)
        marker = self.folder / "DONE"
        if not rows or len(starts) != 1 or not marker.exists():
            return None
        began = time.mktime(time.strptime(starts[0]["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
        return max(float(r["seconds"]) for r in rows), marker.stat().st_mtime - began


def late(averager: AveragerSettings, config: Config) -> bool:
    """Whether it has no value within the budget."""
    return len(averager.needed(config.steps)) < averager.observations


_SIZES: dict[Hashable, float] = {}


def flops_per_sample(model: Hashable, prepared: Prepared) -> float:
    if model not in _SIZES:
        _SIZES[model] = flops_of(prepared, planned_model(prepared))
    return _SIZES[model]


@dataclass(frozen=True)
class Planned:
    """A set as it is at some scale. trainings: empty where `problem` says why it cannot be trained here."""

    set: TrainingSet
    words: tuple[str, ...]
    trainings: tuple[Training, ...] = ()
    problem: str = ""

    def missing(self) -> list[Training]:
        return [t for t in self.trainings if t.state() == MISSING]


def plan_set(chosen: TrainingSet, scale: str, runs_root: str, more: Sequence[str] = ()) -> Planned:
    """What a set consists of. A problem, not an exception, where its data are not there or it has no such scale."""
    if scale not in chosen.words:
        return Planned(chosen, (), problem=f"not trained at --scale {scale}")
    asked = [*shlex.split(chosen.words[scale]), *more]
    asked += ["plan=true"] if scale == "paper" else []  # no data are needed to show it
    words = ("-m", *asked, f"runs_root={runs_root}", f"sweep=reproduce-{scale}-{chosen.name}")
    try:
        with tempfile.TemporaryDirectory() as folder:  # Hydra writes there what it is asked, and this only looks
            composed, _ = compose(list(words), folder)
        cluster_settings()  # its settings are for the command that queues
        entries = [read(values, overrides) for values, overrides in composed]
        device, ranks = start_device(entries[0][0].device, plan=True)
        sweep = gather(entries, [o for _, o in composed], device, ranks)
    except UserError as error:
        return Planned(chosen, words, problem=str(error))
    return Planned(chosen, words, tuple(Training(p, p.run_dir in sweep.stable) for p, _ in sweep.trainings))


def unit() -> float:
    """The FLOPs of one step of gpt_tiny, the project's default: the unit of costs."""
    (values, overrides), *_ = compose(["model=gpt_tiny", "plan=true"])[0]
    config, options = read(values, overrides)
    device, ranks = start_device("cpu", plan=True)
    prepared = prepare(config, options, device, ranks)
    return Training(prepared).flops() / prepared.config.steps


def train(plans: Sequence[Planned], jobs: int, launcher: str, log: Path, say: Callable[[str], None]) -> int:
    """Trains what is missing, `jobs` sets at a time, each a multirun with its output in `log`; returns the exit code.

    A set waits for the one whose stable runs it goes on from. A stop signal is handed on, and the same command goes on.
    """
    waiting = [p for p in plans if p.trainings and (p.missing() or unread(p))]
    log.mkdir(parents=True, exist_ok=True)
    running: dict[str, Job] = {}
    failed = False
    try:
        while waiting or running:
            if signals.stop_requested():
                return EXIT["stopped"]
            unfinished = {p.set.name for p in waiting} | set(running)
            for p in [p for p in waiting if p.set.after not in unfinished][: jobs - len(running)]:
                waiting.remove(p)
                path = log / f"{p.set.name}.log"
                say(f"{p.set.name}: {len(p.missing())} of {len(p.trainings)} trainings are missing; output in {path}")
                running[p.set.name] = Job(commands(p, launcher), path)
            for name, job in list(running.items()):
                if (code := job.code()) is None:
                    continue
                del running[name]
                failed = failed or code != 0
                say(f"{name}: finished" if code == 0 else f"{name}: failed with exit code {code}; see {job.log}")
            time.sleep(POLL)
    finally:
        for job in running.values():
            job.process.send_signal(signal.SIGTERM)
        for job in running.values():
            job.process.wait()
    return EXIT["failed"] if failed else 0


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """In a new process: it is killed when its parent is, so that the same command can go on at once."""
    if LIBC:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Job:
    """Commands one after another, until one fails."""

    def __init__(self, commands: list[list[str]], log: Path) -> None:
        self.left, self.log = commands, log
        self.process = self.start()

    def start(self) -> subprocess.Popen:
        with self.log.open("a") as out:
            nothing = subprocess.DEVNULL
            return subprocess.Popen(self.left.pop(0), stdout=out, stderr=out, stdin=nothing, preexec_fn=end_with_parent)

    def code(self) -> int | None:
        """The exit code of the last command or of the one that failed; None while they run."""
        code = self.process.poll()
        if code == 0 and self.left:
            self.process, code = self.start(), None
        return code


def commands(p: Planned, launcher: str) -> list[list[str]]:
    """The set's multirun, and (here, where they are trained) the further read-outs of its runs."""
    words = [w for w in p.words if w != "plan=true"]
    found = [[sys.executable, "-m", "lawa_exp", *words]]
    for training, name, asked in unread(p) if launcher == "local" else []:
        readout = [sys.executable, "-m", "lawa_exp.readout", str(training.folder)]
        found.append([*readout, *shlex.split(asked), "--name", name])
    return found


def unread(p: Planned) -> list[tuple[Training, str, str]]:
    """(training, name, words) of the further read-outs that are missing."""
    return [
        (t, name, words)
        for t in p.trainings
        for name, words in p.set.readouts.items()
        if not (t.folder / "readouts" / name / "metrics.jsonl").exists()
    ]


def read_set(p: Planned) -> list[Run]:
    """The set's finished runs. What diverged or is missing is not among them."""
    found = []
    for t in p.trainings:
        if t.stable or t.state() != DONE:
            continue
        config = RunDir(t.folder).read_config() or {}
        rows, test = read_run(t.folder, [a.id for a in t.config.averagers], t.config.steps)
        readouts = {name: read_rows(t.folder / "readouts" / name / "metrics.jsonl") for name in p.set.readouts}
        metrics = metrics_in(config)
        found.append(Run(t.folder, t.config.steps, t.config.seed, flat(config), rows, test, readouts, metrics))
    return found


def read_all(plans: Mapping[str, Planned]) -> Callable[[str], list[Run]]:
    """The runs of a set by its name, each set read once; Missing: it cannot be trained here."""

    @functools.cache
    def runs(name: str) -> list[Run]:
        if name not in plans:
            raise Missing(f"no set {name} at this scale")
        if plans[name].problem:
            raise Missing(plans[name].problem)
        return read_set(plans[name])

    return runs
