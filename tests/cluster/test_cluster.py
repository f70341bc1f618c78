"""Sweeps and single runs on a real one-node SLURM cluster: that of SLURM_CONF, or one started here (as root)."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import assert_same_run, markers, rows, run, states, tiny

from lawa_exp.launch.slurm import queue
from lawa_exp.launch.slurm.pin import pin
from lawa_exp.storage.rundir import RunDir

HERE = Path(__file__).resolve().parent
LONG = tiny("steps=1000", "save.every=10", "trajectory.every=50", "spacing=50", "evaluate.every=100")
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if "SLURM_CONF" in os.environ:
        yield
        return
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "srun") if not shutil.which(name, path=path)]
    if missing or os.geteuid():
        pytest.skip(f"no cluster: {f'{missing[0]} is not installed' if missing else 'starting one needs root'}")
    folder = tmp_path_factory.mktemp("cluster")
    ports = {name: str(free_port()) for name in ("SLURMCTLD_PORT", "SLURMD_PORT")}
    script = HERE / "cluster.sh"
    subprocess.run([script, "up", folder], check=True, env={**os.environ, **ports}, stdout=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield
    del os.environ["SLURM_CONF"]
    subprocess.run([script, "down", folder], check=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def submit(root: Path, *overrides: str, **options) -> subprocess.CompletedProcess[str]:
    swept = ["-m", *overrides, f"runs_root={root}", "sweep=s", "hydra/launcher=slurm"]
    return run(*swept, "hydra.launcher.time=10", "hydra.launcher.grace=20", **options)


def until(condition: Callable[[], object], limit: float = 240) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


def run_dirs(root: Path) -> list[Path]:
    return sorted({Path(line["run_dir"]) for line in queue.read_record(root / "sweeps" / "s")})


def test_a_sweep_is_pinned_and_submitted_once(tmp_path: Path) -> None:
    checkout = pin(tmp_path / "checkout")
    root = tmp_path / "runs"
    asked = [*tiny("seed=0,1", "k=2,3"), "hydra.launcher.extra={hold: true}"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    first = submit(root, *asked, env=environment)
    assert first.returncode == 0 and "4 entries, 2 trainings" in first.stdout, first.stdout + first.stderr
    assert "2 new; 2 to submit" in first.stdout
    (checkout / "lawa_exp" / "train.py").write_text("raise SystemExit('edited after the submission')\n")
    (checkout / "conf" / "config.yaml").write_text("broken: [\n")
    again = submit(root, *asked)
    assert again.returncode == 0 and "2 queued; 0 to submit" in again.stdout, again.stdout + again.stderr
    ids = [line["job"] for line in queue.read_record(root / "sweeps" / "s")]
    assert len(ids) == 2 and len({id.split("_")[0] for id in ids}) == 1, "one array"
    subprocess.run(["scontrol", "release", ids[0].split("_")[0]], check=True)
    twin = tmp_path / "twin"
    assert run("-m", *tiny("seed=0,1", "k=2,3"), f"runs_root={twin}", "sweep=s", warm=True).returncode == 0
    until(lambda: not queue.queue().keys() & set(ids))
    for run_dir in run_dirs(root):
        assert markers(run_dir) == ["DONE"]
        assert_same_run(run_dir, twin / run_dir.name)
    last = submit(root, *tiny("seed=0,1,2", "k=2,3"), "hydra.launcher.wait=true")
    assert last.returncode == 0 and "2 done, 1 new; 1 to submit" in last.stdout, last.stdout + last.stderr
    assert "3 done; 0 to submit" in last.stdout


def test_cool_downs_start_after_their_stable_run(tmp_path: Path) -> None:
    asked = [*tiny("lr=wsd", "steps=30,40", "lr.decay_steps=10", "init.from=stable"), "avg=lawa"]
    asked = [o for o in asked if not o.startswith("averagers.")]
    twin = tmp_path / "twin"
    assert run("-m", *asked, f"runs_root={twin}", "sweep=s", warm=True).returncode == 0
    sent = submit(tmp_path / "runs", *asked, "hydra.launcher.wait=true")
    assert sent.returncode == 0 and "3 done; 0 to submit" in sent.stdout, sent.stdout + sent.stderr
    found = run_dirs(tmp_path / "runs")
    assert len(found) == 3
    for run_dir in found:
        assert (run_dir / "metrics.jsonl").read_bytes() == (twin / run_dir.name / "metrics.jsonl").read_bytes()


def test_two_ranks_are_interrupted_and_go_on(tmp_path: Path) -> None:
    assert submit(tmp_path, *LONG, "hydra.launcher.tasks_per_node=2").returncode == 0
    (run_dir,) = run_dirs(tmp_path)
    (line,) = queue.read_record(tmp_path / "sweeps" / "s")
    until(lambda: states(run_dir))
    subprocess.run(["scancel", "--signal=USR1", line["job"]], check=True)
    until(lambda: line["job"] not in queue.queue())
    assert markers(run_dir) == ["DONE"]
    assert [(p["ranks"], p["slurm"]["start"]) for p in rows(run_dir, "provenance.jsonl")] == [(2, 0), (2, 1)]


def test_every_run_of_an_array_requeues_itself_alone(tmp_path: Path) -> None:
    """SLURM gives the last job of an array the array's own number: alone it would mean all of its jobs."""
    assert submit(tmp_path, *LONG, "seed=0,1").returncode == 0
    jobs = {Path(line["run_dir"]): line["job"] for line in queue.read_record(tmp_path / "sweeps" / "s")}
    for run_dir, job in reversed(jobs.items()):
        until(lambda run_dir=run_dir: states(run_dir))
        subprocess.run(["scancel", "--signal=USR1", job], check=True)
    until(lambda: not queue.queue().keys() & set(jobs.values()))
    for run_dir in jobs:
        assert markers(run_dir) == ["DONE"]
        assert [p["slurm"]["start"] for p in rows(run_dir, "provenance.jsonl")] == [0, 1]


def test_one_run_without_submitit(tmp_path: Path) -> None:
    run_dir, twin = tmp_path / "run", tmp_path / "twin"
    script = [str(HERE.parents[1] / "launch" / "sbatch_single.sh"), *LONG]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where the script finds its python
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "env": {**os.environ, "PATH": path}}
    sent = subprocess.run([*script, f"run_dir={run_dir}"], **options)
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.split()[-1]
    twice = subprocess.run([*script, f"run_dir={run_dir}"], **options)
    assert twice.returncode == 2 and twice.stderr == f"error: run_dir={run_dir} is in the queue already, as job {job}\n"
    until(lambda: states(run_dir))
    subprocess.run(["scontrol", "requeue", job], check=True)
    wrong = subprocess.run([*script, "seed=1", f"run_dir={run_dir}"], **options)
    assert wrong.returncode == 2 and "holds another trajectory (the run has seed=0, this command 1)" in wrong.stderr
    assert run(*LONG, f"run_dir={twin}", warm=True).returncode == 0
    until(lambda: job not in queue.queue())
    assert_same_run(run_dir, twin)
    assert len(rows(run_dir, "provenance.jsonl")) == 2


BREAKS = """
import torch
from lawa_exp.system.hashing import hash_of

class Breaks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 256)

    def forward(self, tokens):
        if self.training and torch.initial_seed() == int(hash_of(0, 8, 0)) >> 1:  # in step 8
            raise ValueError("broken here")
        return self.embedding(tokens)
"""


def test_an_error_that_repeats_is_not_requeued(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BREAKS)
    asked = ["model=custom", "model.builder=mine:Breaks", "steps=20", "save.every=5", "trainer.threads=1", "avg=none"]
    assert submit(tmp_path, *asked, cwd=tmp_path).returncode == 0
    (run_dir,) = run_dirs(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit('edited after the submission')\n")
    until(lambda: not queue.queue().keys() & {line["job"] for line in queue.read_record(tmp_path / "sweeps" / "s")})
    assert [(e["step"], e["reason"]) for e in RunDir(run_dir).errors()] == [(7, "ValueError: broken here")] * 2
    assert len(rows(run_dir, "provenance.jsonl")) == 2 and markers(run_dir) == ["FAILED"]


@pytest.mark.parametrize(
    "override, line",
    [
        ("hydra.launcher.partition=gpus", "hydra.launcher.partition=gpus: no such partition here; choices: "),
        ("hydra.launcher.tasks_per_node=3", "batch.size=4: expected a multiple of the 3 ranks"),
        ("hydra.launcher.nodes=40", "hydra/launcher=slurm: the cluster refused: "),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_submitted(override: str, line: str, tmp_path: Path) -> None:
    said = submit(tmp_path, *tiny("batch.size=40" if "nodes=40" in override else "batch.size=4"), override)
    assert said.returncode == 2 and len(said.stderr.strip().splitlines()) == 1 and line in said.stderr, said.stderr
    assert queue.read_record(tmp_path / "sweeps" / "s") == [] and not list(tmp_path.glob("gpt_tiny*"))


CLAIMS = """
title: Mine
claims:
  - id: loss
    says: It is above 0.
    where: here
    setting: small
    published: []
    arms: {live: {set: tiny}}
    rules: [live > 0]
"""
TRAININGS = """
sets: {tiny: {what: small, words: {cpu: WORDS}}}
forms: {as_published: {recipe: as_published, data: embedded, names: {cpu: {}}}}
"""


@pytest.mark.slow
def test_claims_are_queued_and_judged(tmp_path: Path) -> None:
    claims, runs = tmp_path / "claims", tmp_path / "runs"
    claims.mkdir()
    (claims / "mine.yaml").write_text(CLAIMS)
    (claims / "trainings.yaml").write_text(TRAININGS.replace("WORDS", f'"{" ".join(tiny("steps=20"))} seed=0,1"'))
    asked = ["mine", "--claims", str(claims), "--runs-root", str(runs)]
    launcher = ["--launcher", "slurm", "--", "hydra.launcher.time=10", "hydra.launcher.grace=20"]
    queued = run(*asked, *launcher, module="lawa_exp.reproduce")
    assert queued.returncode == 0 and "queued" in queued.stdout, queued.stdout + queued.stderr
    until(lambda: not queue.queue())
    read = run(*asked, "--read", module="lawa_exp.reproduce")
    assert read.returncode == 0, read.stdout + read.stderr
    assert "**holds**" in (runs / "reproduce" / "cpu" / "mine.md").read_text()
