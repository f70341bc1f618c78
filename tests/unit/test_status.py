"""`lawa_exp.status` of real runs: running, stopped, killed, failed, diverged, done; what SLURM's queue says."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import UPDATE, Strike, command, run, tiny

from lawa_exp.launch.slurm.queue import Job
from lawa_exp.results.progress import Progress
from lawa_exp.status.__main__ import main
from lawa_exp.status.runs import Listed, list_runs
from lawa_exp.status.standing import STATES, Standing, duration, is_over, look_at, stand, standings
from lawa_exp.system import heartbeat

BROKEN = """
import torch

class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(256))

    def forward(self, inputs):
        if self.training:
            raise RuntimeError("the layer's first line\\nand the reason")
        return self.weight.expand(*inputs.shape, 256)

def build(**settings):
    return Broken()
"""


def status(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def of(run_dir: Path, now: float | None = None) -> Standing:
    return standings([Listed(run_dir)], now or time.time())[0][0]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its state of step 15. Not to be changed."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    strike = Strike(UPDATE, n=20)
    assert run(*tiny(), f"run_dir={folder}", strike=strike).returncode == -signal.SIGKILL
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rates, of which the second diverges, each one training with two windows. Not to be changed."""
    root = tmp_path_factory.mktemp("sweep")
    varied = ["lr.peak=0.001,1e12", "k=2,3", f"runs_root={root}", "sweep=rates", "optimizer.clip_norm=0"]
    done = run("-m", *tiny(), *varied, warm=True)
    assert done.returncode == 3, done.stderr  # one diverged, none failed
    return root / "sweeps" / "rates"


def test_a_running_run_tells_step_speed_and_time_left_and_then_that_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    launch = command(*tiny("steps=1000000", "evaluate.every=1000000"), f"run_dir={folder}")
    process = subprocess.Popen(launch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (found := heartbeat.read(folder / heartbeat.NAME)) or not found.get("seconds_left"):
            assert process.poll() is None
            time.sleep(0.05)
        told = status(capsys, folder)
        one = told["runs"][0]
        assert told["counts"]["running"] == 1 and one["state"] == "running" and one["restarts"] == 0
        assert 0 < one["step"] < one["steps"] == 1_000_000
        assert one["tokens_per_second"] > 0 and one["seconds_left"] > 0 and one["unit"] == "token"
        assert main([str(folder)]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert re.search(r"running +[\d,]+/1,000,000 +[\d,]+ tokens/s +\d+ (d|h|min)", line)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
    assert not (folder / heartbeat.NAME).exists()
    stopped = status(capsys, folder)["runs"][0]
    assert stopped["state"] == "stopped" and stopped["step"] >= one["step"] and stopped["seconds_left"] is None


def test_a_killed_run_is_lost_since_its_last_sign_of_life_and_says_where_it_goes_on(killed: Path) -> None:
    beat = heartbeat.read(killed / heartbeat.NAME)
    assert beat
    lost = of(killed, beat["time"] + heartbeat.MISSED + 1)
    assert (lost.state, lost.since, lost.restarts) == ("lost", beat["time"], 0)
    assert "goes on from step 15" in lost.note


def test_of_another_machine_only_the_silence_tells(killed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(killed, tmp_path / "run")
    beat = {**json.loads((folder / heartbeat.NAME).read_text()), "host": "elsewhere"}
    beat.pop("crc32")
    (folder / heartbeat.NAME).write_text(json.dumps(beat))
    assert of(folder, beat["time"] + heartbeat.LOST - 1).state in ("running", "starting")
    assert of(folder, beat["time"] + heartbeat.LOST + 1).state == "lost"


def test_a_run_that_goes_on_after_a_kill_counts_the_restart(killed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(killed, tmp_path / "run")
    assert run(*tiny(), f"run_dir={folder}", warm=True).returncode == 0
    done = of(folder)
    assert (done.state, done.step, done.steps, done.restarts) == ("done", 60, 60, 1)
    assert not (folder / heartbeat.NAME).exists()


def test_the_last_line_of_an_error_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    folder = tmp_path / "run"
    custom = ["model=custom", "model.builder=broken:build", "model.context=32"]
    asked = [o for o in tiny() if not o.startswith("model.")]
    search = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    done = run(*asked, *custom, f"run_dir={folder}", env={**os.environ, "PYTHONPATH": search})
    assert done.returncode == 1, done.stderr
    failed = of(folder)
    assert (failed.state, failed.note) == ("failed", "RuntimeError: ... and the reason")


def test_a_sweep_lists_each_training_once_with_what_tells_it_from_the_others(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = status(capsys, sweep)
    assert [(r["overrides"], r["state"]) for r in told["runs"]] == [
        (["lr.peak=0.001"], "done"),
        (["lr.peak=1000000000000.0"], "diverged"),
    ]
    assert told["runs"][1]["step"] < told["runs"][1]["steps"] == 60
    assert main([str(sweep)]) == 0
    head, _, _, first, _ = capsys.readouterr().out.splitlines()
    assert head == "2 runs: 1 diverged, 1 done" and first.startswith("lr.peak=1000000000000.0  diverged")
    assert {r["run_dir"] for r in status(capsys, sweep.parent.parent)["runs"]} == {r["run_dir"] for r in told["runs"]}


def test_a_heartbeat_goes_on_whatever_the_facts_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.001)
    beats, asked = heartbeat.Heartbeat(tmp_path / heartbeat.NAME), []
    again = threading.Event()

    def facts() -> dict[str, Any]:
        asked.append(threading.current_thread().name)
        if len(asked) >= 3:
            again.set()
            return {"step": 7}
        raise AttributeError("mark")

    beats.facts = facts
    with beats.beating():
        first = heartbeat.read(beats.path)
        assert first and first["process"] == os.getpid() and "step" not in first
        assert again.wait(60), "the thread has died"
    assert asked[1:3] == ["heartbeat", "heartbeat"]


def test_facts_can_be_told_from_the_first_moment(tmp_path: Path) -> None:
    """The thread asks as soon as it is given them, while the progress is still being made."""

    class Eager(heartbeat.Heartbeat):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "facts":
                told.append(value())

    told: list[dict[str, Any]] = []
    Progress(10, 4, False, "token", Eager(tmp_path / heartbeat.NAME))
    assert told[-1] == {**told[-1], "step": 4, "steps": 10, "tokens_per_second": 0.0, "seconds_left": None}


def test_a_sweep_moved_with_its_runs_still_finds_them(sweep: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(sweep.parent.parent, tmp_path / "moved")
    manifest = moved / "sweeps" / "rates" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["crc32"]  # as who edits it by hand does
    for entry in content["entries"]:
        entry["run_dir"] = f"gone/{Path(entry['run_dir']).name}"
    manifest.write_text(json.dumps(content))
    assert {r.path.parent for r in list_runs(manifest.parent)} == {moved}


def test_an_entry_that_asks_for_more_steps_than_were_done_is_not_done(sweep: Path) -> None:
    run_of = list_runs(sweep)[0]
    more = stand(look_at(Listed(run_of.path, steps=100)), {}, time.time())
    assert (more.state, more.step, more.steps) == ("not started", 60, 100)
    assert is_over(look_at(run_of)) and is_over(look_at(Listed(run_of.path, job="7", submitted=1.0)))
    again = look_at(Listed(run_of.path, steps=100, job="7", submitted=time.time() + 1))  # submitted since
    assert not is_over(again)
    assert stand(again, {"7": Job("7", "PENDING", "a", "Resources")}, time.time()).state == "queued"


QUEUE = {
    "pending": (Job("7_1", "PENDING", "a", "Resources"), "queued", "Resources"),
    "its process has not begun": (Job("7_1", "RUNNING", "a", "None", 2e9), "starting", "job 7_1"),
    "not in it": (None, "lost", ""),
}


@pytest.mark.parametrize("case", QUEUE)
def test_what_the_queue_says_of_a_run_that_was_killed(killed: Path, case: str) -> None:
    job, state, note = QUEUE[case]
    files = look_at(Listed(killed, job="7_1", submitted=1.5e9))
    files.beat = {**(files.beat or {}), "job": "7_1"}
    found = stand(files, {"7_1": job} if job else {}, time.time() + heartbeat.LOST)
    assert found.state == state and note in found.note


def test_a_node_that_is_lost_shows_although_the_queue_still_has_its_job(killed: Path) -> None:
    files = look_at(Listed(killed, job="7_1", submitted=1.5e9))
    earlier = Job("7_1", "RUNNING", "a", "None", files.beat_time - 100)
    assert stand(files, {"7_1": earlier}, files.beat_time + heartbeat.LOST + 1).state == "lost"


def test_a_single_job_that_saved_and_waits_in_the_queue_is_found_by_its_provenance(
    killed: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(killed, tmp_path / "run")
    (folder / heartbeat.NAME).unlink()
    (folder / "STOPPED").write_text('{"step": 15}')
    line = json.loads((folder / "provenance.jsonl").read_text())
    (folder / "provenance.jsonl").write_text(json.dumps({**line, "slurm": {"job": "9", "start": 0}}) + "\n")
    waits = {"9": Job("9", "PENDING", "a", "BeginTime")}
    assert stand(look_at(Listed(folder)), waits, time.time()).state == "queued"
    assert stand(look_at(Listed(folder)), {}, time.time()).state == "stopped"


def test_a_submitted_run_of_which_nothing_is_there_yet(tmp_path: Path) -> None:
    sweep = tmp_path / "sweeps" / "one"
    sweep.mkdir(parents=True)
    entry = {"overrides": [], "run_dir": "runs/a", "steps": 9, "averages": []}
    (sweep / "manifest.json").write_text(json.dumps({"command": "", "entries": [entry]}))
    assert stand(look_at(list_runs(sweep)[0]), {}, 0).state == "not started"
    lines = [{"run_dir": "runs/a", "job": "6_0", "time": 5}, {"run_dir": "runs/a", "job": "7_0", "time": 9}]
    (sweep / "submitted.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"run_dir": "ru')
    submitted = list_runs(sweep)[0]
    assert (submitted.job, submitted.submitted) == ("7_0", 9)
    queued = {"6_0": Job("6_0", "RUNNING", "a", "", 1.0), "7_0": Job("7_0", "PENDING", "a", "Priority")}
    assert stand(look_at(submitted), queued, 10).state == "queued"
    assert stand(look_at(submitted), None, 10).state == "submitted"
    assert stand(look_at(submitted), {}, 10).state == "lost"


@pytest.mark.parametrize("content", ["", "{}", '{"entries": [{}]}', "[]"])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert main([str(tmp_path)]) == 2
    assert re.fullmatch(r"error: .*manifest.json is damaged.*\n", capsys.readouterr().err)


def test_a_folder_without_runs_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert re.fullmatch(r"error: SWEEP=.*expected a sweep .*\n", capsys.readouterr().err)


def test_watch_shows_it_again(sweep: Path) -> None:
    launch = command(str(sweep), "--watch", "0.05", module="lawa_exp.status")
    process = subprocess.Popen(launch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    heads = 0
    while heads < 3:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        heads += line.startswith("2 runs: ")
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "" and process.returncode == 0


def test_every_state_is_explained() -> None:
    help_text = run("--help", module="lawa_exp.status").stdout
    assert all(re.search(rf"^(\w+, )?{state}\b", help_text, re.MULTILINE) for state in STATES)


def test_durations_have_two_units() -> None:
    assert [duration(s) for s in (0.4, 59.6, 3600, 93784)] == ["0 s", "1 min", "1 h", "1 d 2 h"]
