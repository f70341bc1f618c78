"""What torchrun does with a rank that fails and with signals, with the script that is around it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import LIMIT, markers, rows, states, tiny

from lawa_exp.system.slurm_step import join_ranks

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).parents[2] / "launch" / "torchrun.sh"
HERE = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [str(SCRIPT), "--standalone", "--nproc_per_node=2", "-m", "lawa_exp", *arguments]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": HERE}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def test_a_rank_that_fails_says_so_first(tmp_path: Path) -> None:
    asked = [o for o in tiny("dataset=pydocs", "steps=100000") if not o.startswith("model.")]
    custom = ["model=custom", "model.builder=failing:Failing", "model.context=32"]
    failed = start(*asked, *custom, "trainer=fsdp", f"run_dir={tmp_path / 'run'}")
    _, err = failed.communicate(timeout=LIMIT)
    assert failed.returncode == 1, err
    first = re.search(r"^.*(error|Error|ERROR).*$", err, re.MULTILINE)
    assert first and first[0] == "error on rank 1: ValueError: the eighth batch of rank 1, in /data/gloo/NCCL.jpg", err
    others = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "error: rank 1: ValueError: the eighth batch of rank 1, in /data/gloo/NCCL.jpg" in others
    assert all("rank 1" in line or "another rank has ended" in line for line in others)
    summary = err.partition("Root Cause")[2]
    assert "rank      : 1" in summary and "the eighth batch of rank 1" in summary, err
    assert markers(tmp_path / "run") == ["FAILED"]
    told = json.loads((tmp_path / "run" / "FAILED").read_text())
    assert told["rank"] == 1 and told["reason"] == "ValueError: the eighth batch of rank 1, in /data/gloo/NCCL.jpg"
    noted = [json.loads(line) for line in (tmp_path / "run" / "errors.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in noted] == [told["reason"]]


@pytest.mark.slow
def test_a_rank_without_room_on_the_disk(tmp_path: Path) -> None:
    """All ranks were writing that snapshot: none waits for the others, and what is whole stays."""
    asked = [o for o in tiny("steps=100000", "save.every=5") if not o.startswith("model.")]
    custom = ["model=custom", "model.builder=failing:without_room", "model.context=32"]
    failed = start(*asked, *custom, "trainer=fsdp", f"run_dir={tmp_path / 'run'}")
    _, err = failed.communicate(timeout=LIMIT)
    assert failed.returncode == 1 and "error: no room left on the disk" in err, err
    assert markers(tmp_path / "run") == ["FAILED"]
    assert states(tmp_path / "run") == [5]
    assert [p.name for p in (tmp_path / "run" / "trajectory").iterdir()] == ["step_00000005"]


def test_signals_reach_the_ranks_and_the_exit_code_comes_back(tmp_path: Path) -> None:
    """SIGUSR1 to the script, and while the ranks save SIGTERM, as SLURM sends before a time limit."""
    running = start(*tiny("steps=1000000", "save.every=1000000"), "trainer=fsdp", f"run_dir={tmp_path / 'run'}")
    end = time.monotonic() + LIMIT
    while not list(tmp_path.glob("run/trajectory/step_*/manifest.json")) and time.monotonic() < end:
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=LIMIT)
    assert running.returncode == 75, err
    assert markers(tmp_path / "run") == ["STOPPED"]
    step = json.loads((tmp_path / "run" / "STOPPED").read_text())["step"]
    assert f"stopped after step {step} and saved" in out and states(tmp_path / "run") == [step]


@pytest.mark.slow
def test_a_batch_that_the_ranks_do_not_divide(tmp_path: Path) -> None:
    refused = start(*tiny("batch.size=5"), f"run_dir={tmp_path / 'run'}")
    _, err = refused.communicate(timeout=LIMIT)
    assert refused.returncode == 2
    assert err.count("error: batch.size=5: expected a multiple of the 2 ranks, such as 6\n") == 1
    assert "UserError" not in err and not (tmp_path / "run").exists()


def test_tasks_of_a_slurm_step_are_ranks() -> None:
    step = {
        "SLURM_JOB_ID": "1234",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "20",
        "SLURM_STEP_TASKS_PER_NODE": "8(x2),4",
        "SLURM_STEP_NODELIST": "gpu-[007-008,011]",
        "SLURM_PROCID": "17",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2",
    }
    found = dict(step)
    join_ranks(found)
    port = found.pop("MASTER_PORT")
    assert 1024 < int(port) < 65536
    assert found == step | {
        "RANK": "17",
        "WORLD_SIZE": "20",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu-007",
    }
    for unchanged in (
        {**step, "WORLD_SIZE": "2", "RANK": "1"},  # torchrun in a step
        {k: v for k, v in step.items() if not k.startswith("SLURM_STEP_")},  # the batch script itself
        {**step, "SLURM_STEP_NUM_TASKS": "1"},
    ):
        found = dict(unchanged)
        join_ranks(found)
        assert found == unchanged


@pytest.mark.slow
def test_two_tasks_as_srun_starts_them(tmp_path: Path) -> None:
    asked = [*tiny("steps=10", "evaluate.every=10"), "trainer=ddp", f"run_dir={tmp_path / 'run'}"]
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0"}
    step |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost"}
    tasks = []
    for rank in ("0", "1"):
        environment = os.environ | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        launch = [sys.executable, "-m", "lawa_exp", *asked]
        tasks.append(subprocess.Popen(launch, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [task.communicate(timeout=LIMIT)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert "2 rank(s) x 1 x 2" in outputs[0] and outputs[1] == ""
    assert rows(tmp_path / "run")[-1]["step"] == 10
