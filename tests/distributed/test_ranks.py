"""Two ranks (gloo, torchrun) train what one trains, and a run of two ranks loses nothing either."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import UPDATE, Strike, assert_same_run, assert_whole, markers, rows, run, run_all, states, tiny
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed

# 50 samples in batches of 8: seven, which do not go evenly round two ranks, the last one a quarter full
ASKED = [*tiny("evaluate.samples=50"), "evaluate.batch_size=8", "logger.every=1"]
NOISE = [*tiny("evaluate.samples=50", "steps=10"), "logger.every=1", "watch=noise_scale", "trainer.micro_batch=1"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on one rank."""
    folder = tmp_path_factory.mktemp("one") / "run"
    done = run(*ASKED, f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    assert_whole(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks, and another one."""
    folder = tmp_path_factory.mktemp("two")
    done = run_all(folder, 2, {"run": ASKED, "noise": NOISE})
    assert [d.returncode for d in done.values()] == [0, 0], done["run"].stdout + done["noise"].stdout
    assert "2 rank(s) x 1 x 2" in done["run"].stdout
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    assert_whole(folder / "run")
    return folder / "run"


def test_one_and_two_ranks_see_the_same_batches(one: Path, two: Path) -> None:
    """Equal to rounding at first; how fast that grows is the model's own (3e-6 in the loss after 60 steps)."""
    rows_one, rows_two = rows(one), rows(two)
    assert len(rows_one) == len(rows_two) > 60
    assert len([r for r in rows_one if r["split"] == "train"]) == 60
    measured = {"loss": 1e-4, "grad_norm": 1e-2}  # the relative difference allowed after step 10
    for a, b in zip(rows_one, rows_two, strict=True):
        assert {k: v for k, v in a.items() if k not in measured} == {k: v for k, v in b.items() if k not in measured}
        for name in a.keys() & measured.keys():
            assert a[name] == pytest.approx(b[name], rel=2e-6 if a["step"] <= 10 else measured[name]), (name, a, b)
    assert rows_one != rows_two, "bit-equal: did two ranks train at all?"


def test_the_noise_scale_is_that_of_one_rank(folder: Path, tmp_path: Path) -> None:
    """The same micro-batches, accumulated on one rank, spread over two, and both."""
    done = run(*NOISE, f"run_dir={tmp_path}", warm=True)
    assert done.returncode == 0, done.stderr
    one, two = ([r for r in rows(path) if r["split"] == "train"] for path in (tmp_path, folder / "noise"))
    assert len(one) == len(two) == 10
    for a, b in zip(one, two, strict=True):
        scale = a["grad_norm"] ** 2
        for name in ("grad_squared", "grad_variance"):
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5 * scale), (name, a, b)
    assert one != two, "bit-equal: did two ranks train at all?"


def test_evaluation_counts_each_sample_once(one: Path, two: Path, tmp_path: Path) -> None:
    """The first weights: on one rank, on two, and in two whole batches where nothing is filled up."""
    even = [o for o in ASKED if o.split("=")[0] not in ("steps", "evaluate.batch_size")]
    assert run(*even, "steps=1", "evaluate.batch_size=25", f"run_dir={tmp_path}", warm=True).returncode == 0
    first, *others = (rows(folder)[0] for folder in (tmp_path, one, two))
    assert first["step"] == 0 and first["split"] == "val" and first["eval_samples"] == 50
    for other in others:
        assert other["eval_samples"] == 50
        assert other["loss"] == pytest.approx(first["loss"], rel=1e-6)


def test_two_ranks_killed_and_stopped(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked = [*ASKED, f"run_dir={folder}"]

    died = run(*asked, ranks=2, warm=True, strike=Strike(UPDATE, n=20, rank=1))
    assert died.returncode == 1 and "error: another rank has ended ([" in died.stderr, died.stderr
    assert states(folder) == [15] and markers(folder) == [] and not (folder / "errors.jsonl").exists()

    of = "resume/.partial-step_00000030/model.safetensors"
    half = Strike("lawa_exp.storage.store:write_tensors", "half", of, rank=0, whom="everyone")
    died = run(*asked, ranks=2, warm=True, strike=half)
    assert died.returncode == -signal.SIGKILL and "continuing from step 15" in died.stdout, died.stderr
    assert states(folder) == [15] and (folder / "resume" / ".partial-step_00000030").is_dir()
    assert markers(folder) == []

    stopped = run(*asked, ranks=2, strike=Strike(UPDATE, n=20, rank=0, signal="SIGTERM", whom="torchrun"))
    assert stopped.returncode != 0 and "continuing from step 15" in stopped.stdout
    assert markers(folder) == ["STOPPED"], stopped.stderr
    step = json.loads((folder / "STOPPED").read_text())["step"]
    assert 35 <= step < 45 and states(folder) == [30, step]
    assert f"stopped after step {step} and saved" in stopped.stdout

    done = run_all(tmp_path, 2, {"run": ASKED})["run"]
    assert done.returncode == 0 and f"continuing from step {step}" in done.stdout and "warning" not in done.stdout
    assert_same_run(folder, two)


def test_feedback_and_a_window_on_the_disk(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "undisturbed"
    asked = tiny("steps=40", "feedback=lookahead", "feedback.every=7", "trajectory.window=disk")
    assert run(*asked, f"run_dir={other}", ranks=2, warm=True).returncode == 0
    died = run(*asked, f"run_dir={folder}", ranks=2, warm=True, strike=Strike(UPDATE, n=33, rank=1))
    newest = states(folder)[-1]  # the other rank writes in the background, and may have ended before it was done
    assert died.returncode == 1 and newest in (15, 30)
    done = run(*asked, f"run_dir={folder}", ranks=2, warm=True)
    assert done.returncode == 0 and f"continuing from step {newest}" in done.stdout, done.stderr
    assert_same_run(folder, other)


def test_divergence_with_a_window_on_the_disk(tmp_path: Path) -> None:
    """The rank that writes nothing waits for the files of the one that does."""
    custom = ["model=custom", "model.builder=failing:with_late_files", "model.context=32"]
    burst = ["fault=rate", "fault.at=25", "fault.length=1", "fault.factor=1e30", "optimizer.clip_norm=0"]
    asked = [o for o in tiny("spacing=5", "trajectory.window=disk", *burst) if not o.startswith("model.")]
    done = run(*asked, *custom, f"run_dir={tmp_path}", ranks=2, warm=True)
    assert "error" not in done.stderr, done.stderr
    assert done.returncode == 3 and markers(tmp_path) == ["DIVERGED"]
    last = json.loads((tmp_path / "DIVERGED").read_text())["step"]
    assert last == 26  # its weights are enormous, but finite
    found = {p.parents[1].name: load_file(p) for p in tmp_path.glob(f"averages/*/step_{last:08d}/model.safetensors")}
    assert found.keys() == {"lawa-k3-s5", "ema-d0.9-e1", "swa-e5-from20"}
    assert all(torch.isfinite(t).all() for tensors in found.values() for t in tensors.values())
    held = [load_file(tmp_path / f"trajectory/step_{s:08d}/model.safetensors") for s in (15, 20, 25)]
    for name, mean in found["lawa-k3-s5"].items():
        assert torch.equal(mean, sum(t[name].double() for t in held).div(3).float())


def test_ranks_with_other_files_are_refused(tmp_path: Path) -> None:
    """Each has its own copy of a custom model, as nodes without a common disk have; nothing is trained."""
    for rank, between in enumerate(("nn.Identity()", "nn.ReLU()")):
        source = f"nn.Sequential(nn.Embedding(256, 8), {between}, nn.Linear(8, 256))"
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "copied.py").write_text(f"from torch import nn\ndef build():\n    return {source}\n")
    custom = ["model=custom", "model.builder=copied:build", "model.context=32", f"run_dir={tmp_path / 'run'}"]
    asked = [*(o for o in tiny() if not o.startswith("model.")), *custom]
    refused = run(*asked, ranks=2, warm=True, cwd=tmp_path / "{rank}")
    assert refused.returncode == 2, refused.stderr
    said = "error: rank 1 has another trajectory than rank 0 (model.code.sources.copied differ): its copy of the data"
    assert refused.stderr.splitlines()[0].startswith(said), refused.stderr
    assert not (tmp_path / "run").exists()


def test_three_ranks_killed(tmp_path: Path) -> None:
    """With three, sums depend on their order, and DDP's buckets change after a process's first backward pass."""
    folder, other = tmp_path / "run", tmp_path / "undisturbed"
    asked = tiny("batch.size=6", "steps=20", "save.every=5", "evaluate.every=10", "model.layers=4", "model.width=96")
    assert run(*asked, f"run_dir={other}", ranks=3, warm=True).returncode == 0
    died = run(*asked, f"run_dir={folder}", ranks=3, warm=True, strike=Strike(UPDATE, n=8, rank=1))
    assert died.returncode == 1 and states(folder) == [5]
    done = run(*asked, f"run_dir={folder}", ranks=3, warm=True)
    assert done.returncode == 0 and "continuing from step 5" in done.stdout, done.stderr
    assert_same_run(folder, other)


def test_state_of_two_ranks_continues_on_one(two: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "run")
    more = [o for o in ASKED if o != "steps=60"]
    done = run(*more, "steps=70", f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    assert "warning: ranks was 2 and is 1" in done.stdout and "continuing from step 60" in done.stdout
    assert markers(folder) == ["DONE"] and rows(folder)[-1]["step"] == 70
    recorded = [json.loads(line)["ranks"] for line in (folder / "provenance.jsonl").read_text().splitlines()]
    assert recorded == [2, 1]
