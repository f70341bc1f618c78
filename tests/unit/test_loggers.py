"""logger=[tensorboard,csv]: their readers give back the rows of the run, as they are after kills, too."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import UPDATE, Strike, assert_same_run, rows, run, tiny

from lawa_exp.axes.logger.rows import Steps
from lawa_exp.storage.rundir import RunDir

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ASKED = tiny("logger.every=5", "logger=[tensorboard,csv]")


def payloads(folder: Path) -> dict[int, dict[str, Any]]:
    """What a logger gets of each step."""
    run = RunDir(folder)
    return dict(Steps(run.metrics, run.timing).new(whole=True))


def in_csv(folder: Path) -> dict[int, dict[str, float]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        lines = [{key: float(value) for key, value in line.items() if value} for line in csv.DictReader(file)]
    assert len({line["step"] for line in lines}) == len(lines)
    return {int(line["step"]): line for line in lines}


def in_tensorboard(folder: Path) -> dict[int, dict[str, float]]:
    """As TensorBoard's own reader reads the folder."""
    assert len(list((folder / "tensorboard").glob("events.*"))) == 1
    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in reader.Tags()["scalars"]:
        for event in reader.Scalars(tag):
            assert tag not in found.setdefault(event.step, {})
            found[event.step][tag] = event.value
    return found


def assert_has_all(folder: Path) -> None:
    expected = payloads(folder)
    assert in_csv(folder) == expected
    rounded = {s: {k: float(np.float32(v)) for k, v in row.items() if k != "step"} for s, row in expected.items()}
    assert in_tensorboard(folder) == rounded


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loggers") / "run"
    done = run(*ASKED, f"run_dir={folder}", warm=True)
    assert done.returncode == 0 and "warning" not in done.stdout, done.stdout + done.stderr
    return folder


def test_every_row_is_read_back(whole: Path) -> None:
    assert_has_all(whole)
    last = [row for row in rows(whole) if row["split"] == "val"][-1]
    key = f"val/{last['weights']}/loss"
    assert in_csv(whole)[last["step"]][key] == last["loss"]
    assert in_tensorboard(whole)[last["step"]][key] == float(np.float32(last["loss"]))


def test_after_a_kill_the_files_are_those_of_an_uninterrupted_run(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    died = run(*ASKED, f"run_dir={folder}", strike=Strike(UPDATE, n=37))
    assert died.returncode == -signal.SIGKILL
    done = run(*ASKED, f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_run(folder, whole)
    assert_has_all(folder)


def test_push_writes_them_for_a_run_without(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "timing.jsonl", "DONE"):
        (folder / name).write_bytes((whole / name).read_bytes())
    for kind in ("tensorboard", "csv"):
        done = run(str(folder), "--to", kind, module="lawa_exp.push", warm=True)
        assert done.returncode == 0 and f"{len(payloads(folder))} steps in {folder / kind}" in done.stdout, done.stderr
    assert_has_all(folder)
    refused = run(str(folder), "--to", "csv", "--offline", module="lawa_exp.push", warm=True)
    assert refused.returncode == 2 and "--offline is for --to=wandb" in refused.stderr


def test_a_column_that_comes_later_makes_the_table_anew(tmp_path: Path) -> None:
    from lawa_exp.axes.logger.csv import CsvSender

    (tmp_path / "csv").mkdir()
    metrics = tmp_path / "metrics.jsonl"
    train = {"split": "train", "weights": "live"}
    metrics.write_text("".join(json.dumps({"step": s, **train, "loss": s / 3}) + "\n" for s in (1, 2, 3)))
    sender = CsvSender(RunDir(tmp_path))
    sender.send(whole=False)
    assert sorted(in_csv(tmp_path)) == [1, 2]
    with metrics.open("a") as file:
        file.write(json.dumps({"step": 4, **train, "loss": float("nan"), "grad_norm": 0.1 + 0.2}) + "\n")
    sender.send(whole=True)
    found = in_csv(tmp_path)
    assert [found[s]["train/loss"] for s in (1, 2, 3)] == [1 / 3, 2 / 3, 1.0] and np.isnan(found[4]["train/loss"])
    assert found[4]["train/grad_norm"] == 0.1 + 0.2 and "train/grad_norm" not in found[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["logger.project=p", "logger=wandb"], "loggers.wandb.project"),
        (["logger=csv", "+loggers.more={kind: csv, finish_timeout: 3}"], "two of the kind csv"),
        (["logger=csv", "loggers.csv.finish_timeout=-1"], "expected a number, at least 0"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    done = run(*tiny(*words), "plan=true", warm=True)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
