"""A run that is killed or stopped anywhere and started again ends with the bytes of one that never was.

Each chain strikes one run several times, then finishes it with the plain command. `newest` is the newest committed
state after a strike: it shows that the strike hit where it was meant to.
"""

import json
import shutil
import signal
from pathlib import Path

import pytest
from helpers import TINY, UPDATE, Done, Strike, assert_same_run, assert_whole, contents, markers, rows, run, states

EVALUATE = "lawa_exp.training.evaluating:evaluate"
SAVE = "lawa_exp.training.state:Staged.commit"
TENSORS = "lawa_exp.storage.store:write_tensors"
SYNC = "lawa_exp.storage.commit:sync"
RENAME = "pathlib:Path.rename"
DELETE = "shutil:rmtree"

# (strike, newest state after it). The counts are those of the process that is struck, which goes on from `newest` of
# the line before.
CHAINS: dict[str, list[tuple[Strike, int | None]]] = {
    "update": [
        (Strike(UPDATE), None),  # step 1
        (Strike(UPDATE, "after", n=13), None),  # one snapshot in the window, no state yet
        (Strike(UPDATE, n=25), 15),  # two of three snapshots in the window
        (Strike(UPDATE, "after", n=10), 15),  # between update and averagers, window not full in the state either
        (Strike(UPDATE, "after", n=45), 45),  # the last step
    ],
    "evaluation": [
        (Strike(EVALUATE), None),  # step 0
        (Strike(EVALUATE, n=3), 15),  # step 20, the EMA's weights in place of the live ones
        (Strike(EVALUATE, n=5), 30),  # step 40, LAWA's weights in place
        (Strike("lawa_exp.storage.rows:Rows.flush"), 30),  # step 40, its rows in the buffer
        (Strike("lawa_exp.storage.rows:Rows.flush", "after"), 30),  # step 40, its rows in the file
        (Strike(EVALUATE, n=9), 60),  # on the test split, after the last state
    ],
    "save": [
        (Strike(SAVE), None),  # the metrics are synced, the state is not there
        # in the middle of a file
        (Strike(TENSORS, "half", of="resume/.partial-step_00000015/optimizer.safetensors"), None),
        (Strike(SYNC, of="step_00000030/manifest.json"), 15),  # manifest written, not synced
        (Strike(RENAME, of="resume/.partial-step_00000030"), 15),  # everything but the name
        (Strike(RENAME, "after", of="resume/.partial-step_00000030"), 30),  # named, its folder not synced
        (Strike(RENAME, of="resume/step_00000015"), 45),  # three states
        (Strike(DELETE, "half", of="resume/.partial-step_00000030", n=2), 60),  # an old state half removed
    ],
    "background": [
        (Strike(TENSORS, "half", of="trajectory/.partial-step_00000010/model.safetensors"), None),
        (Strike(RENAME, of="trajectory/.partial-step_00000025"), 15),
        (Strike(RENAME, of="averages/lawa-k3-s10/.partial-step_00000040"), 30),
        # two averages of one averager
        (Strike("lawa_exp.averaging.kept:remove", of="averages/lawa-k3-s10/step_00000040"), 45),
        (
            Strike("lawa_exp.storage.rundir:remove", of="resume/step_00000030"),
            60,
        ),  # three states, and nothing left to train
        (Strike("lawa_exp.runs.ending:write_report"), 60),
        (Strike("lawa_exp.storage.rundir:write_text", of="DONE"), 60),
    ],
}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, undisturbed, in a Python of its own."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run(*TINY, f"run_dir={folder}", warm=False)
    assert done.returncode == 0, done.stderr
    assert_whole(folder)
    return folder


def kill(folder: Path, strike: Strike, newest: int | None) -> Done:
    """Starts or continues the run, and sees it die where it should."""
    died = run(*TINY, f"run_dir={folder}", strike=strike)
    assert died.returncode == -signal.SIGKILL, f"{strike} did not hit: {died.returncode}\n{died.stdout}{died.stderr}"
    assert (states(folder)[-1:] or [None]) == [newest], f"{strike} hit elsewhere"
    assert markers(folder) == []
    return died


def finish(folder: Path, twin: Path) -> None:
    done = run(*TINY, f"run_dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout and markers(folder) == ["DONE"]
    assert_same_run(folder, twin)


@pytest.mark.parametrize("name", CHAINS)
def test_killed_at_named_points(name: str, twin: Path, tmp_path: Path) -> None:
    folder, before = tmp_path / "run", None
    for strike, newest in CHAINS[name]:
        died = kill(folder, strike, newest)
        assert (f"continuing from step {before}\n" in died.stdout) == (before is not None)
        before = newest
    finish(folder, twin)


def test_killed_between_the_renames_of_a_replaced_state(twin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill(folder, Strike(UPDATE, n=50), 45)
    damaged = folder / "resume" / "step_00000045" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    kill(folder, Strike(RENAME, "after", of="resume/step_00000045"), 30)
    assert (folder / "resume" / ".replaced-step_00000045").is_dir()
    again = kill(folder, Strike(RENAME, "after", of="resume/.partial-step_00000045"), 45)
    assert f"{damaged} has" in again.stdout and "continuing from step 30" in again.stdout  # the old one had come back
    assert (folder / "resume" / ".replaced-step_00000045").is_dir()
    finish(folder, twin)


def test_killed_at_changes_of_files(twin: Path, tmp_path: Path) -> None:
    folder, alive = tmp_path / "run", False
    for n in (2, 9, 31, 62, 83, 95):
        died = run(*TINY, f"run_dir={folder}", strike=Strike("files", of=str(folder), n=n))
        assert died.returncode == -signal.SIGKILL, f"file change {n}: {died.stdout}{died.stderr}"
        alive = alive or states(folder) != []
    assert alive, "every kill came before the first state"
    finish(folder, twin)


def test_killed_while_the_batch_grows(tmp_path: Path) -> None:
    ramp = ["batch=ramp", "batch.first=2", "batch.increment=1", "batch.over=90", "batch.unit=samples"]
    asked = [*TINY, *ramp, "lr=wsd", "lr.unit=samples", "lr.decay_steps=20", "logger.every=1"]
    folder, other = tmp_path / "run", tmp_path / "undisturbed"
    assert run(*asked, f"run_dir={other}", warm=True).returncode == 0
    for n, newest in ((20, 15), (17, 30)):  # step 20 has 2 samples, step 32 has 3
        died = run(*asked, f"run_dir={folder}", strike=Strike(UPDATE, n=n))
        assert died.returncode == -signal.SIGKILL and states(folder)[-1] == newest, died.stdout + died.stderr
    assert run(*asked, f"run_dir={folder}", warm=True).returncode == 0
    assert_same_run(folder, other)
    trained = {r["step"]: r for r in rows(folder) if r["split"] == "train"}
    assert [trained[t]["batch_size"] for t in (1, 23, 24, 38, 39, 60)] == [2, 2, 3, 3, 4, 4]
    assert {r["trained_samples"] for r in rows(folder) if r["step"] == 60 and r["split"] == "val"} == {46 + 45 + 88}


@pytest.mark.slow
def test_compiled_run_killed(tmp_path: Path) -> None:
    """Compiled code must not depend on which batch shapes a process has seen before."""
    asked = [*TINY, "trainer.compile=true", "trainer.deterministic=true"]
    folder, other = tmp_path / "run", tmp_path / "undisturbed"
    assert run(*asked, f"run_dir={other}").returncode == 0
    for n in (40, 20):
        died = run(*asked, f"run_dir={folder}", strike=Strike(UPDATE, n=n))
        assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
    assert states(folder)[-1] == 45
    assert run(*asked, f"run_dir={folder}").returncode == 0
    assert_same_run(folder, other)


@pytest.mark.slow
def test_killed_at_every_seventh_change_of_a_file(twin: Path, tmp_path: Path) -> None:
    """One kill each, in runs of their own."""
    for n in range(1, 10_000, 7):
        folder = tmp_path / str(n)
        died = run(*TINY, f"run_dir={folder}", strike=Strike("files", of=str(folder), n=n))
        if died.returncode == 0:
            break
        assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
        finish(folder, twin)
        shutil.rmtree(folder)
    assert n > 200, "the run changed few files"
    assert_same_run(folder, twin)


def test_stopped_by_signals(twin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    links = [
        (Strike("lawa_exp.training.train:restore", signal="SIGTERM"), 0),  # before the first step
        (Strike(UPDATE, "after", n=7, signal="SIGINT"), 7),
        (Strike("lawa_exp.training.keeper:Keeper.save", signal="SIGUSR1"), 16),  # at the save of step 15
        (Strike(EVALUATE, n=2, signal="SIGUSR2"), 21),  # at step 20, the EMA's weights in place of the live ones
        (Strike(UPDATE, n=8, signal="SIGTERM"), 29),
    ]
    for strike, step in links:
        stopped = run(*TINY, f"run_dir={folder}", strike=strike)
        assert stopped.returncode == 75, stopped.stdout + stopped.stderr
        assert markers(folder) == ["STOPPED"] and json.loads((folder / "STOPPED").read_text()) == {"step": step}
        assert strike.signal in stopped.stderr and f"stopped after step {step} and saved" in stopped.stdout
        assert states(folder)[-1:] == ([step] if step else [])
        assert max((r["step"] for r in rows(folder)), default=0) <= step
    at_the_end = run(*TINY, f"run_dir={folder}", strike=Strike(UPDATE, n=31, signal="SIGTERM"))
    assert at_the_end.returncode == 0 and "SIGTERM" in at_the_end.stderr  # nothing was left to do after step 60
    assert markers(folder) == ["DONE"] and len(contents(folder)) == len(contents(twin))
    assert_same_run(folder, twin)
