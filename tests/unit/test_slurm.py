"""What a sweep on a cluster decides, without one: ranks, records, what is to be submitted, whether a job goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import run, tiny

from lawa_exp.config.rules import build
from lawa_exp.launch import compose
from lawa_exp.launch.conf import CONF
from lawa_exp.launch.slurm import queue, requeue, submit
from lawa_exp.launch.slurm.pin import pin
from lawa_exp.launch.slurm.queue import Job
from lawa_exp.launch.slurm.settings import Slurm
from lawa_exp.launch.slurm.worker import train_pinned, write_pinned
from lawa_exp.runs import sweep
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError
from lawa_exp.system.machine import git_state


def cluster(**settings) -> Slurm:
    defaults = yaml.safe_load((CONF / "hydra/launcher/slurm.yaml").read_text())
    return build(Slurm, {k: v for k, v in defaults.items() if not k.startswith("_")} | settings, "hydra.launcher")


def test_the_record_of_a_sweep(tmp_path, monkeypatch):
    """Written from the folder in which the sweep was submitted, read from another, and where it was moved to."""
    tmp_path = tmp_path / "runs"
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two, tmp_path / "sweeps" / "s"):
        folder.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path.parent)
        queue.record(Path("runs/sweeps/s"), {Path("runs/one"): "7_0", Path("runs/two"): "7_1"})
        queue.record(Path("runs/sweeps/s"), {Path("runs/two"): "9"})
    with (tmp_path / "sweeps" / "s" / queue.SUBMITTED).open("a") as file:
        file.write('{"run_dir": "half')
    sweep = tmp_path / "sweeps" / "s"
    assert [(line["run_dir"], line["job"]) for line in queue.read_record(sweep)] == [
        (one, "7_0"),
        (two, "7_1"),
        (two, "9"),
    ]
    name = queue.job_name("s")
    jobs = {
        "7_0": Job("7_0", "RUNNING", "another sweep's, years later"),
        "9": Job("9", "PENDING", name),
        "10": Job("10", "RUNNING", name),
    }
    assert queue.active([sweep], jobs) == {two: (jobs["9"], sweep)}
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert queue.active([moved / "sweeps" / "s"], jobs) == {moved / "two": (jobs["9"], moved / "sweeps" / "s")}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A finished run of TINY with steps=20, spacing=5."""
    folder = tmp_path_factory.mktemp("done") / "run"
    assert run(*SHORT, f"run_dir={folder}", warm=True).returncode == 0
    return folder


SHORT = tiny("steps=20", "spacing=5", "averagers.swa.start=5", "averagers.swa.every=5", "averagers.ema.every=1")


def prepared(root: Path, *overrides: str):
    """What a sweep of one entry is prepared to."""
    keys = {o.split("=")[0] for o in overrides}
    asked = [*(o for o in SHORT if o.split("=")[0] not in keys), *overrides]
    composed, _ = compose.compose(["-m", *asked, f"runs_root={root}", "sweep=s"])
    entries = [compose.read(values, mine) for values, mine in composed]
    return sweep.gather(entries, [mine for _, mine in composed], torch.device("cpu"), Ranks())


def test_what_is_submitted(tmp_path, done):
    gathered = prepared(tmp_path)
    ((training, _),) = gathered.trainings
    folder = training.run_dir

    def stands(training=training, active=None):
        found = submit.standing(training, active, gathered.folder)
        return found.word, found.due

    assert stands() == ("new", True)
    assert stands(active=(Job("3_1", "PENDING", "s"), gathered.folder)) == ("queued", False)
    assert stands(active=(Job("3_1", "RUNNING", "s"), gathered.folder)) == ("running", False)
    assert (
        "of the sweep t" in submit.standing(training, (Job("3", "RUNNING", "t"), tmp_path / "t"), tmp_path / "s").more
    )
    shutil.copytree(done, folder)
    assert stands() == ("done", False)
    longer, more = (prepared(tmp_path, o).trainings[0][0] for o in ("steps=40", "averagers.swa.every=10"))
    assert longer.run_dir == more.run_dir == folder
    assert stands(longer) == ("to continue", True)  # its marker says 20 steps
    assert stands(more) == ("to read out", True)
    too_fine = prepared(tmp_path, "averagers.ema.every=3").trainings[0][0]
    assert (
        stands(too_fine) == ("done", False) and "cannot be read out" in submit.standing(too_fine, None, tmp_path).more
    )
    RunDir(folder).mark("FAILED", step=12, reason="OSError: the disk is gone")
    assert stands() == ("failed", True)
    RunDir(folder).mark("DIVERGED", step=7)
    assert stands() == ("diverged", False)
    RunDir(folder).mark("STOPPED", step=7)
    assert stands() == ("to continue", True)
    with RunDir(folder).locked():  # trained without SLURM
        assert stands() == ("running", False)
    assert stands() == ("to continue", True)


def test_entries_that_differ_in_averaging_are_one_job(tmp_path):
    gathered = prepared(tmp_path, "k=2,3", "seed=0,1", "averagers.ema.decay=0.9,0.8")
    assert [len(members) for _, members in gathered.trainings] == [4, 4]
    ids = {a.id for a in gathered.trainings[0][0].config.averagers}
    assert ids >= {"lawa-k2-s5", "lawa-k3-s5", "ema-d0.9-e1", "ema-d0.8-e1"}


def test_a_worker_trains_what_was_written_down(tmp_path, done, monkeypatch, capfd):
    ((training, _),) = prepared(tmp_path).trainings
    pinned = tmp_path / "configs" / "one.yaml"
    write_pinned(pinned, training, ["-m", "hydra/launcher=slurm"])
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir("/")
    assert train_pinned(pinned) == 0
    assert (training.run_dir / "metrics.jsonl").read_bytes() == (done / "metrics.jsonl").read_bytes()
    content = yaml.safe_load(pinned.read_text())
    pinned.write_text(yaml.safe_dump(content | {"trajectory_id": "another"}))
    with pytest.raises(UserError, match="changed since it was queued"):
        train_pinned(pinned)
    shutil.rmtree(training.run_dir)
    gone = {"from": str(tmp_path / "gone"), "step": 5, "optimizer": None}
    bad = content | {"config": content["config"] | {"init": gone}}
    pinned.write_text(yaml.safe_dump(bad))
    with pytest.raises(UserError, match="no such run"):
        train_pinned(pinned)
    marker = RunDir(training.run_dir).marker()
    assert marker and marker[0] == "FAILED" and "no such run" in marker[1]["reason"]
    pinned.write_text(yaml.safe_dump(content))
    assert train_pinned(pinned) == 0 and RunDir(training.run_dir).marker() == ("DONE", {"step": 20})


JOB = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "7"}


@pytest.fixture
def in_job(tmp_path, monkeypatch):
    """A run directory, and a function that says that its job 5_2 is started for the n-th time."""
    for key, value in JOB.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "config.yaml").touch()
    return RunDir(tmp_path), lambda n: monkeypatch.setenv("SLURM_RESTART_COUNT", str(n))


def fails(folder: RunDir, step: int) -> None:
    folder.mark("FAILED", step=step, reason="ValueError: no")
    folder.note_error(step, "ValueError: no")


def test_interruptions_go_on_and_endings_do_not(in_job):
    folder, start = in_job
    for n in range(20):
        start(n)
        assert requeue.decide(folder, 75)[0]
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # in the first second, before the handlers
            assert requeue.decide(folder, 128 + number)[0]
        for code in (0, 2, 3, 128 + signal.SIGKILL):
            assert not requeue.decide(folder, code)[0]
    folder.mark("STOPPED", step=3)
    assert requeue.decide(folder, 128 + signal.SIGKILL)[0]  # srun ended the slower ranks
    assert folder.errors() == []


def test_an_error_that_repeats_at_its_step_fails(in_job):
    folder, start = in_job
    for n, (step, goes_on) in enumerate([(10, True), (11, True), (10, False)]):
        start(n)
        fails(folder, step)
        assert requeue.decide(folder, 1) == (goes_on, requeue.decide(folder, 1)[1])
    assert "failed again after step 10: ValueError: no" in requeue.decide(folder, 1)[1]
    assert folder.marker() == ("FAILED", {"step": 10, "reason": "ValueError: no"})


def test_errors_of_a_job_are_bounded_and_another_job_begins_anew(in_job, monkeypatch):
    folder, start = in_job
    answers = []
    for n in range(requeue.OWN_ERRORS + 1):
        start(n)
        fails(folder, n)
        answers.append(requeue.decide(folder, 1)[0])
    assert answers == [True] * requeue.OWN_ERRORS + [False]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")  # submitted again
    start(0)
    fails(folder, 0)
    assert requeue.decide(folder, 1)[0]


def test_a_crash_without_a_word_is_an_error_too(in_job):
    folder, start = in_job
    fails(folder, 30)
    for n, goes_on in (1, True), (2, False):
        start(n)
        folder.mark(None)  # it was begun
        assert requeue.decide(folder, 128 + signal.SIGSEGV)[0] is goes_on
    assert [e["step"] for e in folder.errors()] == [30, 0, 0]
    assert folder.marker() == ("FAILED", {"step": 0, "reason": "exit code 139, without a word; see the job's log"})


def test_a_crash_before_the_run_began_is_not_repeated(in_job):
    folder, _ = in_job
    folder.config.unlink()
    assert requeue.decide(folder, 75)[0] and not requeue.decide(folder, 1)[0]
    assert list(folder.path.iterdir()) == []


def test_what_another_rank_failed_with_is_kept(in_job):
    folder, start = in_job
    start(0)
    folder.mark("FAILED", step=5, reason="ValueError: on rank 1")
    assert requeue.decide(folder, 1)[0]
    assert [(e["step"], e["reason"]) for e in folder.errors()] == [(5, "ValueError: on rank 1")]


def test_the_copy_of_the_code(tmp_path):
    (tmp_path / "mine.py").write_text("WIDTH = 1\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "one.py").write_text("WIDTH = 1\n")  # without __init__.py
    folder = tmp_path / "code"
    asked = f"pin(Path({str(folder)!r}), ['mine', 'parts.one'])"
    script = f"from pathlib import Path; from lawa_exp.launch.slurm.pin import pin; print({asked})"

    def again() -> Path:
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return Path(done.stdout.strip())

    first = again()
    assert again() == first
    (tmp_path / "mine.py").write_text("WIDTH = 2\n")
    assert again() != first and (first / "mine.py").read_text() == "WIDTH = 1\n"
    assert (first / "parts" / "one.py").exists()
    # It is whole: the command runs from it, and its runs know the commit of the checkout.
    asked = "import json, lawa_exp, lawa_exp.system.machine as m; print(lawa_exp.__file__, json.dumps(m.git_state()))"
    environment = {**os.environ, "PYTHONPATH": str(first), "PYTHONSAFEPATH": "1"}
    for words in ["-c", asked], ["-m", "lawa_exp", "plan=true"]:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        if words[0] == "-c":
            assert done.stdout == f"{first}/lawa_exp/__init__.py {json.dumps(git_state())}\n"
    with pytest.raises(UserError, match=r"builder=absent: no such module here"):
        pin(folder, ["absent"])


@pytest.mark.parametrize(
    "time, seconds",
    [(2, 120), ("1:30", 90), ("1:00:05", 3605), ("1-2", 93600), ("1-2:03", 93780), ("1-0:00:01", 86401)],
)
def test_how_long_a_start_may_take(time, seconds):
    assert cluster(time=time, grace=1).seconds == seconds


def test_the_sbatch_script():
    asked = cluster(
        partition="gpu", nodes=2, gpus_per_node=4, constraint="a100", extra={"qos": "high"}, setup=["ulimit -c 0"]
    )
    assert asked.ranks == 8 and cluster(tasks_per_node=3).ranks == 3
    found = submit.parameters(asked, "name", Path("/code"), Path("/run_dirs"), ["7_0", "7_1"])
    expected = {
        "partition": "gpu",
        "ntasks_per_node": 4,
        "gpus_per_node": 4,
        "constraint": "a100",
        "signal_delay_s": 120,
    }
    assert expected.items() <= found.items()
    assert found["additional_parameters"] == {
        "requeue": True,
        "qos": "high",
        "dependency": "afterok:7_0:7_1",
        "kill-on-invalid-dep": "yes",
    }
    assert found["setup"][0] == "ulimit -c 0"
    typed = cluster(nodes=2, gpus_per_node="a100:4")
    assert (typed.ranks, typed.gpus, cluster().gpus) == (8, 4, 0)
    assert submit.parameters(typed, "name", Path("/code"), Path("/run_dirs"), [])["gpus_per_node"] == "a100:4"
    generic = cluster(nodes=2, gres="gpu:h100:4", qos="high")
    found = submit.parameters(generic, "name", Path("/code"), Path("/run_dirs"), [])
    assert (generic.ranks, generic.gpus, found["gres"], found["qos"]) == (8, 4, "gpu:h100:4", "high")
    assert "gpus_per_node" not in found


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["-m"], "hydra/launcher=slurm: no SLURM on this machine (sbatch is not in PATH)"),
        ([], "hydra/launcher=slurm: only under -m"),
        (["-m", "hydra.launcher.time=0"], "hydra.launcher.time=0: expected"),
        (
            ["-m", "hydra.launcher.time=2"],
            "hydra.launcher.grace=120: expected fewer seconds than hydra.launcher.time=2 ",
        ),
        (["-m", "hydra.launcher.nodes=two"], "hydra.launcher.nodes=two: expected an integer"),
        (
            ["-m", "hydra.launcher.partitions=a"],
            "hydra.launcher.partitions: not a setting here; did you mean partition?",
        ),
        (
            ["-m", "hydra.launcher.comment=x"],
            "another option of sbatch stands in hydra.launcher.extra='{comment: VALUE}'",
        ),
        (["-m", "hydra.launcher.gres=h100:4"], "hydra.launcher.gres=h100:4: expected gpu:NUMBER or gpu:TYPE:NUMBER"),
        (
            ["-m", "hydra.launcher.gres=gpu:4", "hydra.launcher.gpus_per_node=4"],
            "gres=gpu:4: gpus_per_node=4 asks for GPUs too",
        ),
        (["-m", "hydra.launcher.qos=a", "hydra.launcher.extra={qos: b}"], "extra.qos: qos=a says it already"),
        (["-m", "hydra/sweeper=other", "--config-dir", "OTHER"], "hydra/sweeper=other: not with hydra/launcher=slurm"),
        (
            ["-m", "hydra.launcher.gpus_per_node=a100"],
            "=a100: expected an integer of at least 0, or TYPE:NUMBER",
        ),
        (["-m", "hydra.launcher.extra={gres: 'gpu:a100:2'}"], "choose hydra.launcher.gpus_per_node=TYPE:NUMBER, which"),
        (["-m", "hydra.launcher.extra={ntasks: 2}"], "extra.ntasks=2: choose hydra.launcher.tasks_per_node, which"),
        (
            ["-m", "hydra.launcher.setup=[module load cuda, source ~/venv]"],
            """write 'hydra.launcher.setup=["module load cuda", "source ~/venv"]'""",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, line, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "hydra" / "sweeper").mkdir(parents=True)
    (tmp_path / "hydra" / "sweeper" / "other.yaml").write_text("_target_: mine.Sweeper\n")
    arguments = [str(tmp_path) if word == "OTHER" else word for word in arguments]
    code = compose.main([*arguments, "hydra/launcher=slurm", f"runs_root={tmp_path}"])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(said) == 1 and line in said[0], said


def test_typed_gpus_are_planned_where_there_is_no_cluster(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    cluster = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=a100:2", "hydra.launcher.nodes=2"]
    assert compose.main(["-m", *SHORT, *cluster, "seed=0,1", "plan=true", f"runs_root={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert said.count("4 rank(s)") == 2 and "machine     cuda" in said and "no SLURM on this machine" in said
    for name, line in (("sbatch", "exit 0"), ("sinfo", "echo no controller >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    assert compose.main(["-m", *SHORT, *cluster, "seed=0,1", "plan=true", f"runs_root={tmp_path}"]) == 0
    assert "SLURM does not answer (sinfo: no controller): which of these" in capsys.readouterr().out


def test_another_training_in_the_folder_is_told_by_the_plan(done, capsys):
    asked = [*SHORT, "seed=1", f"run_dir={done}"]
    assert compose.main([*asked, "plan=true"]) == 2
    assert "holds another trajectory (the run has seed=0, this command 1)" in capsys.readouterr().err


def test_a_plan_for_ranks_that_do_not_divide_the_batch(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert compose.main([*SHORT, "plan=true"]) == 2
    assert capsys.readouterr().err.startswith("error: batch.size=4: expected a multiple of the 3 ranks, such as 6")


def test_set_up_may_be_one_line():
    assert cluster(setup="module load cuda").setup == ("module load cuda",)
    assert cluster(setup=["a", "b"]).setup == ("a", "b")
