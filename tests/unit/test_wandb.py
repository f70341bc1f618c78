"""logger=wandb with the real package: what its files hold, row by row, and that its failures are not the training's."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import IDS, UPDATE, Strike, assert_same_run, markers, rows, run, states, tiny

from lawa_exp.storage import manifest
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import locked

pytest.importorskip("wandb")
from wandb_files import assert_has_rows, files, rows_in

from lawa_exp.axes.logger.follow import following
from lawa_exp.axes.logger.rows import Steps
from lawa_exp.axes.logger.wandb.offline import Offline, records

SENT = [
    "logger=wandb",
    "loggers.wandb.mode=offline",
    "loggers.wandb.artifacts=true",
    "logger.every=5",
    "loggers.wandb.finish_timeout=60",
]
LONG = ["steps=300", "evaluate.every=100", "save.every=100", "trajectory.every=100", "spacing=100", "logger.every=1"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without W&B."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    done = run(*tiny("logger.every=5"), f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder


def one_file(folder: Path) -> Offline:
    (path,) = files(folder)
    return Offline(path)


def test_an_offline_run_holds_every_row(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(*tiny(*SENT), f"run_dir={folder}", warm=True)
    assert done.returncode == 0 and "warning" not in done.stdout, done.stdout + done.stderr
    assert_same_run(folder, plain)  # the logger is neither in the rows nor in the trajectory id
    file = one_file(folder)
    assert_has_rows(file, folder)
    assert file.finished and file.run.run_id.startswith("run-") and file.run.display_name == "run"
    (axis, all_metrics) = file.metrics
    assert (axis.name, all_metrics.glob_name, all_metrics.step_metric) == ("step", "*", "step")
    assert file.config["trajectory_id"] in file.run.run_id and file.config["lr"]["kind"] == "constant"
    assert file.config["provenance"]["versions"]["torch"] and file.config["starts"] == 1
    last = file.history[-1]
    live, *means = [r for r in rows(folder) if r["step"] == 60 and r["split"] == "val"]
    assert last["val/live/loss"] == live["loss"] and last["best/lawa/loss"] == last["val/lawa-k3-s10/loss"]
    assert {r["weights"] for r in means} == set(IDS)
    tested = {r["weights"]: r["loss"] for r in rows(folder / "readouts" / "test")}
    assert {id: file.summary[f"test/{id}/loss"] for id in tested} == tested
    made = [
        r.artifact
        for r in records(file.path)
        if r.WhichOneof("record_type") == "artifact" and r.artifact.type == "model"
    ]
    assert {a.name for a in made} == {f"run-{id}" for id in ("live", *IDS)}
    assert json.loads(made[1].metadata)["step"] == 60 and {e.path for a in made for e in a.manifest.contents} >= {
        "model.safetensors"
    }
    beside = Path(files(folder)[0]).parent / "files"
    table = json.loads((beside / last["final/table"]["path"]).read_text())
    assert {line[0] for line in table["data"]} == {"live", *(r["weights"] for r in means)}
    assert table["data"][0][2] == live["loss"]
    assert (beside / last["final/curves"]["path"]).read_bytes() == (folder / "curves.png").read_bytes()
    assert (beside / "run" / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_killed_continued_and_stopped(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked = [*tiny(*SENT), f"run_dir={folder}"]
    died = run(*asked, strike=Strike(UPDATE, n=37))
    assert died.returncode == -signal.SIGKILL and states(folder)[-1] == 30
    wait_until(lambda: not processes(folder))  # what sends the rows ends by itself
    metrics, _ = rows_in(one_file(folder))
    assert metrics and all(row in rows(folder) for row in metrics)
    assert max(r["step"] for r in metrics) < max(r["step"] for r in rows(folder))  # the newest may lack rows
    stopped = run(*asked, strike=Strike(UPDATE, n=18, signal="SIGTERM"))
    assert stopped.returncode == 75 and markers(folder) == ["STOPPED"] and "warning" not in stopped.stdout
    wait_until(lambda: not processes(folder))
    assert_has_rows(one_file(folder), folder)  # the killed start's file has given way to a whole one
    assert one_file(folder).summary["how"] == "stopped"
    done = run(*asked, warm=True)
    assert done.returncode == 0 and "warning" not in done.stdout, done.stdout
    assert (folder / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
    file = one_file(folder)
    assert_has_rows(file, folder)
    assert file.config["starts"] == 3 and file.summary["how"] == "done"


def test_a_diverged_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(*tiny(*SENT, "lr.peak=1e12", "optimizer.clip_norm=0", "logger.every=1"), f"run_dir={folder}", warm=True)
    assert done.returncode == 3, done.stdout + done.stderr
    assert any("nonfinite" in row for row in rows(folder))
    assert_has_rows(one_file(folder), folder)
    assert one_file(folder).summary["how"] == "diverged"


def wait_until(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def processes(folder: Path) -> list[int]:
    """Those that send the rows of `folder`, and W&B's services, which are their children."""
    found: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(path.name)] = parent, (path / "cmdline").read_text()
        except OSError:
            continue
    senders = [pid for pid, (_, line) in found.items() if "logger.follow" in line and str(folder) in line]
    return senders + [pid for pid, (parent, _) in found.items() if parent in senders]


@pytest.fixture(scope="module")
def long_plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "run"
    assert run(*tiny(*LONG), f"run_dir={folder}", warm=True).returncode == 0
    return folder


def break_offline(folder: Path, what: str) -> None:
    """While it trains: the service killed, or the sender killed, or the sender hung."""
    wait_until(lambda: len(processes(folder)) > 1 and files(folder))
    sender, service = processes(folder)[:2]
    if what == "service":
        os.kill(service, signal.SIGKILL)
    else:
        os.kill(sender, signal.SIGKILL if what == "sender" else signal.SIGSTOP)


@pytest.mark.parametrize("what", ["service", "sender", "hang", "unwritable"])
def test_failures_are_not_the_trainings(what: str, long_plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if what == "unwritable":
        run(*tiny(*LONG), f"run_dir={folder}", strike=Strike(UPDATE, n=110))
        (folder / "wandb").write_text("in the way")
    asked = tiny(*LONG, "logger=wandb", "loggers.wandb.mode=offline")
    asked += [f"loggers.wandb.finish_timeout={2 if what == 'hang' else 100}", f"run_dir={folder}"]
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(run, *asked, warm=True)
        if what != "unwritable":
            break_offline(folder, what)
        done = training.result()
    assert done.returncode == 0 and markers(folder) == ["DONE"], done.stdout + done.stderr
    assert_same_run(folder, long_plain)
    if what == "service":  # W&B was started again, and got everything
        assert "training goes on, tried again" in done.stdout
        assert_has_rows(one_file(folder), folder)
    else:
        assert "warning: W&B" in done.stdout
        assert f"python -m lawa_exp.push {folder} sends it later" in done.stdout
    wait_until(lambda: not processes(folder))


@pytest.mark.parametrize("key", [{}, pytest.param({"WANDB_API_KEY": "a" * 40}, marks=pytest.mark.slow)])
def test_no_server(key: dict[str, str], plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    without = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment = {**without, "NETRC": str(tmp_path / "netrc"), "WANDB_BASE_URL": "http://127.0.0.1:9", **key}
    asked = tiny("logger.every=5", "logger=wandb", "loggers.wandb.finish_timeout=1")
    done = run(*asked, f"run_dir={folder}", env=environment)
    assert done.returncode == 0 and markers(folder) == ["DONE"], done.stdout + done.stderr
    assert_same_run(folder, plain)
    assert f"warning: W&B does not have everything; python -m lawa_exp.push {folder} sends it later" in done.stdout
    wait_until(lambda: not processes(folder))


def test_push_is_exact_and_idempotent(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(plain, folder)
    first = run(str(folder), "--offline", module="lawa_exp.push")
    assert first.returncode == 0 and "13 of 13 steps sent" in first.stdout, first.stdout + first.stderr
    path, before = files(folder)[0], files(folder)[0].read_bytes()
    assert_has_rows(Offline(path), folder)
    again = run(str(folder), "--offline", module="lawa_exp.push")
    assert again.returncode == 0 and "already" in again.stdout
    assert files(folder) == [path] and path.read_bytes() == before
    more = run(*tiny("steps=70", "logger.every=5"), f"run_dir={folder}", warm=True)
    assert more.returncode == 0, more.stderr
    assert run(str(folder), "--offline", module="lawa_exp.push").returncode == 0
    assert_has_rows(one_file(folder), folder)


def test_push_waits_for_the_sender_of_a_training_that_was_stopped(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "run")
    (folder / "wandb").mkdir()
    (folder / ".lock").unlink()
    with ThreadPoolExecutor(1) as pool:
        with locked(folder / "wandb" / ".lock", "its sender"):
            pushed = pool.submit(run, str(folder), "--offline", module="lawa_exp.push")
            while not (folder / ".lock").exists():
                assert not pushed.done()
                time.sleep(0.05)
            time.sleep(1)
            assert not files(folder) and not pushed.done()
        assert pushed.result().returncode == 0
    assert_has_rows(one_file(folder), folder)


def test_push_of_a_sweep(tmp_path: Path) -> None:
    asked = tiny("steps=20", "seed=0,1", "sweep=two", f"runs_root={tmp_path}")
    assert run("-m", *asked, warm=True).returncode == 0
    done = run(str(tmp_path / "sweeps" / "two"), "--offline", module="lawa_exp.push")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stdout + done.stderr
    folders = [entry["run_dir"] for entry in manifest.read(tmp_path / "sweeps/two")["entries"]]
    for folder in folders:
        file = one_file(folder)
        assert_has_rows(file, folder)
        assert (file.run.run_id, file.run.run_group) == (folder.name, "two")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{folder}"], ": expected a sweep (manifest.json), a run directory (config.yaml) or a folder of runs"),
        ([], "expected RUN, --workspace, or both"),
    ],
)
def test_push_mistakes(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*(a.format(folder=tmp_path) for a in arguments), module="lawa_exp.push")
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_wandb_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lawa_exp.axes.logger.wandb.settings import WandbLogger
    from lawa_exp.storage.rundir import RunDir

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(UserError, match=r"wandb is missing; pip install 'lawa_exp\[wandb\]', or logger=jsonl"),
        following([WandbLogger(1.0, "online", "p", None, False)], RunDir(tmp_path), print),
    ):
        raise AssertionError("training began")


def test_steps_of_growing_files(tmp_path: Path) -> None:
    """A step is given once, whole: when a later one has rows. Torn lines wait. A step's first timing row counts."""
    metrics, timing = tmp_path / "metrics.jsonl", tmp_path / "timing.jsonl"
    steps = Steps(metrics, timing)
    assert list(steps.new(whole=False)) == []
    train = {"split": "train", "weights": "live", "lr": 0.1}
    lines = [json.dumps({"step": s, **train, "loss": s / 3}) + "\n" for s in (1, 2, 3)]
    metrics.write_text(lines[0] + lines[1][:20])
    assert list(steps.new(whole=False)) == []
    metrics.write_text("".join(lines))
    timing.write_text('{"step": 2, "seconds": 1}\n{"step": 2, "seconds": 9}\n')
    assert [(s, row.get("timing/seconds"), row["train/loss"]) for s, row in steps.new(whole=False)] == [
        (1, None, 1 / 3),
        (2, 1, 2 / 3),
    ]
    assert [s for s, _ in steps.new(whole=True)] == [3]
    assert list(steps.new(whole=True)) == []


def test_the_dashboard_shows_keys_that_runs_have(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    done = run("--workspace", "--show", "--project", "p", "--entity", "e", module="lawa_exp.push")
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    titles = {s["name"]: [p["config"].get("chartTitle") for p in s["panels"]] for s in sections}
    assert list(titles)[:4] == ["Loss by averager", "Steps saved", "Training", "Throughput"]
    shown = {key for s in sections for p in s["panels"] for key in p["config"].get("metrics", [])}
    sent = {key for step, row in Steps(plain / "metrics.jsonl", plain / "timing.jsonl").new(True) for key in row}
    of_others = {key for key in shown if key.startswith(("best/", "summary_metrics.steps_saved/"))}
    of_others |= {"train/objective", "train/grad_squared", "train/grad_variance", "val/read_samples", "val/passes"}
    assert shown - of_others <= sent and {f"best/{k}/loss" for k in ("lawa", "ema", "swa")} <= shown & sent
