"""Trainings on images: killed ones end with the bytes of undisturbed ones; every row has an accuracy."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import UPDATE, Strike, assert_same_run, lines_of, markers, rows, run, states
from PIL import Image

from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.launch.compose import compose, read
from lawa_exp.runs.prepare import prepare
from lawa_exp.system.distributed import Ranks

COMMON = [
    *("dataset=digits", "dataset.flip=true", "dataset.crop_padding=1", "dataset.mixup=0.2", "batch.size=64"),
    *("steps=40", "k=2", "spacing=5", "averagers.ema.decay=0.9", "averagers.swa.start=20", "avg=[lawa,ema,swa]"),
    *("evaluate.every=20", "evaluate.samples=60", "evaluate.batch_size=25", "save.every=10", "logger.every=1"),
    *("trajectory.every=5", "trainer.threads=1", "lr.warmup_steps=5"),
]
SMALL = {
    "cct_2": ["model=cct_2", "model.width=64", "lr.peak=3e-3"],  # with dropout, stochastic depth, label smoothing
    "resnet20": ["model=resnet20", "model.layers=8"],  # with BatchNorm
}


@pytest.mark.parametrize("name", SMALL)
def test_killed_and_read_out(name: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "undisturbed"
    asked = [*SMALL[name], *COMMON]
    done = run(*asked, f"run_dir={other}", warm=True)
    assert done.returncode == 0, done.stderr
    for n, newest in ((15, 10), (17, 20)):  # the second, from step 10 on, in step 27
        died = run(*asked, f"run_dir={folder}", strike=Strike(UPDATE, n=n))
        assert died.returncode == -signal.SIGKILL and states(folder)[-1] == newest, died.stdout + died.stderr
    done = run(*asked, f"run_dir={folder}", warm=True)
    assert done.returncode == 0 and markers(folder) == ["DONE"], done.stderr
    assert_same_run(folder, other)

    found = [r for r in rows(other) if r["split"] == "val"]
    assert {r["weights"].split("-")[0] for r in found} == {"live", "lawa", "ema", "swa"}
    test = rows(other, "readouts/test/metrics.jsonl")
    assert len(test) == 4
    for row in found + test:
        assert 0 <= row["accuracy"] <= 1 and row["eval_samples"] == 60
        assert row["trained_tokens"] == row["trained_samples"] == 64 * row["step"]  # one target for each image
    assert found[0]["loss"] > found[-1]["loss"] + 0.1
    assert all("accuracy" not in r for r in rows(other) if r["split"] == "train")

    report = (other / "report.md").read_text()
    assert "Validation loss (nats per image)" in report and "## Validation accuracy" in report
    assert f"(accuracy {test[0]['accuracy']:.4f})" in done.stdout

    again = run(str(other), "--avg", "lawa", "--k", "2", "--spacing", "5", "--out", str(tmp_path / "out"), warm=True,
                module="lawa_exp.readout")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert lines_of(tmp_path / "out", "lawa-k2-s5") == lines_of(other, "lawa-k2-s5") != []
    assert "Loss: nats per image" in (tmp_path / "out" / "summary.md").read_text()


def test_a_model_from_outside_takes_images(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef net(width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    asked = ["model=custom", "model.builder=mine:net", "model.args={width: 32}", *COMMON, "avg=none", "steps=10"]
    asked = [a for a in asked if not a.startswith(("k=", "averagers.")) and a not in ("steps=40", "avg=[lawa,ema,swa]")]
    done = run(*asked, f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "run")[-1]["accuracy"] > 0.1


CLASSES = ("n01440764", "n01443537", "n01484850")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """Three classes of another colour each in ImageNet's layout, 8 and 4 images of 60 x 45 pixels."""
    root, draw = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for image in range(count):
                pixels = draw.integers(0, 60, (45, 60, 3), np.uint8)
                pixels[..., number] += 150
                Image.fromarray(pixels).save(root / split / name / f"{name}_{image}.JPEG")
    return root


def on_folder(root: Path, *model: str) -> list[str]:
    """A small network, or `model` with its recipe for ImageNet, on small images: 6 steps of 8."""
    return [
        *(model or ("model=resnet20", "model.layers=8", "avg=lawa", "dataset=imagenet")),
        *(f"dataset.path={root}", "dataset.image_size=32", "dataset.resize=36", "dataset.mixup=0.2"),
        *("batch.size=8", "steps=6", "k=2", "spacing=2", "evaluate.every=4", "evaluate.batch_size=5", "save.every=4"),
        *("lr.peak=0.02", "lr.warmup_steps=0", "trainer.threads=1", "logger.every=1"),
    ]


def test_imagenets_folder_with_and_without_processes_killed_and_continued(imagenet: Path, tmp_path: Path) -> None:
    asked, folder, other = on_folder(imagenet), tmp_path / "run", tmp_path / "undisturbed"
    done = run(*asked, f"run_dir={other}", "trainer.workers=0", warm=True)
    assert done.returncode == 0, done.stderr
    died = run(*asked, f"run_dir={folder}", "trainer.workers=2", strike=Strike(UPDATE, n=6))
    assert died.returncode == -signal.SIGKILL and states(folder) == [4], died.stdout + died.stderr
    done = run(*asked, f"run_dir={folder}", "trainer.workers=2", warm=True)
    assert done.returncode == 0 and markers(folder) == ["DONE"], done.stderr
    assert_same_run(folder, other)
    last = rows(other)[-1]
    assert last["weights"] == "lawa-k2-s2" and last["bn"] == "recalibrate" and last["eval_samples"] == 12
    assert rows(other)[-2]["accuracy"] > 0.5  # of three colours


def test_entries_of_a_multirun_keep_their_own_workers(imagenet: Path) -> None:
    """They share the open data set: its images are listed once."""
    prepared = []
    for workers in (2, 0, 1, 1):
        ((values, given),), _ = compose([*on_folder(imagenet), f"trainer.workers={workers}"])
        prepared.append(prepare(*read(values, given), torch.device("cpu"), Ranks()))
    two, none, one, same = (p.data for p in prepared)
    assert [p.data.workers for p in prepared] == [p.config.trainer.workers for p in prepared] == [2, 0, 1, 1]
    assert all(data.paths is two.paths for data in (none, one, same))
    batches = [data.train_batch(0, in_epochs(0, 9, data.sizes["train"], 0))[0] for data in (two, none, one, same)]
    assert all(np.array_equal(batches[0], other) for other in batches)
    assert [len(data.decoders.processes) for data in (two, one)] == [2, 1] and one.decoders is same.decoders


def test_a_run_on_pictures_that_were_edited_in_place_does_not_go_on(imagenet: Path, tmp_path: Path) -> None:
    """Their names and sizes are what the fingerprint sees; a copy, and what was only touched, is the same data."""
    folder, pictures = tmp_path / "run", shutil.copytree(imagenet, tmp_path / "pictures")
    assert run(*on_folder(pictures), f"run_dir={folder}", warm=True).returncode == 0
    started = json.loads((folder / "provenance.jsonl").read_text())
    one = sorted((pictures / "train").glob("*/*.JPEG"))[5]
    one.touch()
    for same in (pictures, shutil.copytree(pictures, tmp_path / "copied")):
        again = run(*on_folder(same), f"run_dir={folder}", warm=True)
        assert again.returncode == 0 and "was done already" in again.stdout, again.stderr
    whole = one.read_bytes()
    one.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    for module, asked in (
        ("lawa_exp", [*on_folder(pictures), f"run_dir={folder}"]),
        ("lawa_exp", [*on_folder(pictures), f"run_dir={folder}", "rerun=true"]),
        ("lawa_exp.readout", [str(folder), "--k", "1", "--spacing", "2"]),
        ("lawa_exp.curvature", [str(folder)]),
    ):
        refused = run(*asked, module=module, warm=True)
        assert refused.returncode == 2, refused.stdout
        assert "error: dataset=imagenet: its files were edited in place since" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert json.loads((folder / "provenance.jsonl").read_text()) == started and len(started["data_content"]) == 64
    new = run(*on_folder(pictures), f"run_dir={tmp_path / 'new'}", warm=True)
    assert new.returncode == 0, new.stderr
    assert json.loads((tmp_path / "new" / "provenance.jsonl").read_text())["data_content"] != started["data_content"]


@pytest.mark.slow
def test_resnet50_as_published_on_imagenets_folder(imagenet: Path, tmp_path: Path) -> None:
    asked = [*on_folder(imagenet, "model=resnet50"), "batch.norm_group=2"]
    done = run(*asked, f"run_dir={tmp_path}", "trainer.workers=1", warm=True)
    assert done.returncode == 0 and "23,514,179 parameters" in done.stdout, done.stderr
    assert {r["weights"] for r in rows(tmp_path) if r["split"] == "val"} == {"live", "lawa-k2-s2"}


def test_a_class_that_is_missing_is_one_line(imagenet: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in CLASSES[: 3 if split == "train" else 2]:
            (tmp_path / split / name).symlink_to(imagenet / split / name)
    done = run(*on_folder(tmp_path), f"run_dir={tmp_path / 'run'}", warm=True)
    told = f"dataset=imagenet: class {CLASSES[2]} is in {tmp_path / 'train'}, not in {tmp_path / 'val'}"
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
