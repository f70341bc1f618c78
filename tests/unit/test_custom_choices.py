"""`custom` for every kind of choice, by the examples of examples/custom, from a folder outside of the package."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import Strike, assert_same_run, rows, run
from torch.nn import functional as F

from lawa_exp.axes.dataset.custom import CustomDataset
from lawa_exp.storage.safetensors import map_stored
from lawa_exp.system.hashing import keys_of, uniform

EXAMPLES = Path(__file__).parents[2] / "examples" / "custom"
STATE = Path("lawa_exp", "builders")  # in XDG_STATE_HOME: what the user trained with
SMALL = [
    *("model=custom", "model.builder=perceptron:build", "model.args={width: 8}", "dataset=custom"),
    *("dataset.builder=spirals:Spirals", "batch.size=8", "evaluate.every=4", "trajectory.every=1", "logger.every=1"),
    *("evaluate.samples=all", "trainer.threads=1", "lr.peak=0.05"),
]
SIGN = ["optimizer=custom", "optimizer.builder=sign_descent:build", "optimizer.args={momentum: 0.9}"]
CYCLIC = [
    *("lr=custom", "lr.builder=cyclic_rate:cyclic", "lr.args={period: 4}", "lr.uses_horizon=false"),
    *("lr.warmup_steps=0", "scaling=custom", "scaling.builder=cube_root:cube_root", "scaling.args={base_batch: 1}"),
]
SQUARED = ["layers=[custom]", "layers.custom.builder=squared_relu:square"]
NORM = ["watch=[custom]", "watch.custom.builder=weight_norm:WeightNorm"]
GEOMETRIC = [
    *("avg=[custom]", "averagers.custom.builder=geometric_window:Geometric"),
    "averagers.custom.args={k: 3, spacing: 2, ratio: 0.5}",
]
FOCAL = ["objective=custom", "objective.builder=focal_loss:Focal", "objective.args={gamma: 2}"]
CENTRALISED = ["update=[custom]", "update.custom.builder=centralised_gradient:Centralised"]
DRAWN = ["sampling=custom", "sampling.builder=with_replacement:WithReplacement"]
DOUBLING = [
    *("batch=custom", "batch.builder=doubling_batch:doubling", "batch.args={first: 2, epochs: 0.01}"),
    *("batch.size=8",),
]
HALF_WAY = [
    *("feedback=custom", "feedback.builder=half_way_back:half_way", "feedback.args={every: 4}", "feedback.every=4"),
    "feedback.from_initial=true",
]
STALLED = ["fault=custom", "fault.builder=stalled_rate:Stalled", "fault.at=6", "fault.length=1"]
PLAIN = ["optimizer=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0", "lr=constant", "lr.warmup_steps=0"]
EVERY_KIND = [
    *(*SIGN, *CYCLIC, *SQUARED, *NORM, *FOCAL, *CENTRALISED, *DRAWN, *DOUBLING, *HALF_WAY, *STALLED, *GEOMETRIC),
    *("steps=12", "save.every=4"),
]
ID = "custom-geometric_window.Geometric-k3-ratio0.5-spacing2"

WRONG = "builder=wrong:number"
OTHERS = {  # what no example is about
    "wrong.py": "def number(*first, **named):\n    return 1\n",
    "again.py": "from squared_relu import SquaredReLU\n\ndef cubed(model):\n"
    "    assert any(type(m) is SquaredReLU for m in model.modules())\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, elsewhere."""
    folder = shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("outside") / "custom")
    for name, text in OTHERS.items():
        (folder / name).write_text(text)
    return folder


def train(folder: Path, name: str, *words: str, **more: Any) -> Path:
    done = run(*SMALL, *words, f"run_dir={name}", cwd=folder, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / name


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run with every kind."""
    return train(folder, "whole", *EVERY_KIND)


def snapshot(path: Path, step: int) -> dict[str, torch.Tensor]:
    return map_stored(path / "trajectory" / f"step_{step:08d}")


def trained(path: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in rows(path) if row["split"] == "train"}


def scores(weights: dict[str, torch.Tensor], points: torch.Tensor, power: int = 1) -> torch.Tensor:
    for layer in ("0", "2", "4"):
        points = F.linear(points, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        points = points.relu() ** power if layer != "4" else points
    return points


def spirals(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """As examples/custom/spirals.py makes them."""
    angle = np.sqrt(np.random.default_rng({"train": 0, "val": 1}[split]).uniform(size=256)) * 3 * np.pi
    labels = np.arange(256) % 2
    points = np.float32((1 - 2 * labels) * angle / 5 * (np.cos(angle), np.sin(angle))).T
    return torch.tensor(points), torch.tensor(labels)


def test_a_model_data_layers_an_optimizer_rates_a_watch_and_an_averager(folder: Path) -> None:
    path = train(folder, "one", *SIGN, *CYCLIC, *SQUARED, *NORM, *GEOMETRIC, "steps=8")
    train_rows = trained(path)
    triangle = {1: 0.5, 2: 1, 3: 0.5, 0: 0}
    for step, row in train_rows.items():
        assert row["lr"] == pytest.approx(2 * 0.05 * (0.1 + 0.9 * triangle[step % 4]))  # 2: the cube root of 8
        if step > 1:
            before = torch.cat([t.flatten() for t in snapshot(path, step - 1).values()])
            after = torch.cat([t.flatten() for t in snapshot(path, step).values()])
            assert row["weight_norm"] == pytest.approx(before.norm().item(), rel=1e-6)
            went = (after - before).abs()
            assert ((went - row["lr"]).abs().lt(1e-6) | went.eq(0)).all() and went.gt(0).any()
    points, labels = spirals("val")
    (live,) = (r for r in rows(path) if (r["split"], r["step"], r["weights"]) == ("val", 8, "live"))
    assert live["loss"] == pytest.approx(F.cross_entropy(scores(snapshot(path, 8), points, 2), labels).item(), rel=1e-5)
    (kept,) = (path / "averages").glob(f"{ID}-*/step_00000008")
    average = map_stored(kept)
    for name, tensor in average.items():
        window = [snapshot(path, step)[name].double() for step in (4, 6, 8)]
        expected = (0.25 * window[0] + 0.5 * window[1] + window[2]) / 1.75
        assert torch.equal(tensor, expected.float())


def test_an_objective_an_update_samples_and_batches(folder: Path) -> None:
    path = train(folder, "two", *PLAIN, *FOCAL, *CENTRALISED, *DRAWN, *DOUBLING, "steps=5")
    sizes = {step: row["batch_size"] for step, row in trained(path).items()}
    assert sizes == {1: 2, 2: 2, 3: 4, 4: 8, 5: 8}  # 0.01 epochs are 2.56 samples
    draws = uniform(keys_of(0, 1000, np.arange(16, 24)), 1)[:, 0]  # of step 5, after 2 + 2 + 4 + 8 samples
    indices = torch.tensor((draws * 256).astype(np.int64))
    points, labels = spirals("train")
    weights = {name: t.clone().requires_grad_() for name, t in snapshot(path, 4).items()}
    each = F.cross_entropy(scores(weights, points[indices]), labels[indices], reduction="none")
    focal = ((1 - (-each).exp()) ** 2 * each).mean()
    focal.backward()
    row = trained(path)[5]
    assert (row["loss"], row["focal"]) == pytest.approx((each.mean().item(), focal.item()), rel=1e-5)
    assert row["objective"] == row["focal"]
    for name, t in weights.items():
        assert t.grad is not None
        gradient = t.grad - t.grad.mean(1, keepdim=True) if t.ndim > 1 else t.grad
        torch.testing.assert_close(snapshot(path, 5)[name], t.detach() - 0.05 * gradient, rtol=1e-4, atol=1e-7)


def test_a_feedback_and_a_fault(folder: Path) -> None:
    path = train(folder, "three", *PLAIN, *HALF_WAY, *STALLED, "fault.at=7", "steps=8")
    assert [row["lr"] for row in trained(path).values()] == [0.05] * 7 + [0]
    slow, fast = snapshot(path, 4), snapshot(path, 7)  # the update of step 8 changes nothing
    for name, tensor in snapshot(path, 8).items():
        torch.testing.assert_close(tensor, (slow[name] + fast[name]) / 2, rtol=1e-6, atol=1e-8)
        assert not torch.equal(tensor, fast[name])


def test_every_kind_is_in_the_id_alone_and_in_the_run(whole: Path) -> None:
    content = yaml.safe_load((whole / "config.yaml").read_text())
    identity = content["identity"]
    alone = ("model", "dataset", "optimizer", "lr", "batch", "scaling", "sampling", "objective", "feedback", "fault")
    parts = [identity[group] for group in alone] + [identity["layers"][0], identity["update"][0]]
    assert [[*part["code"]["sources"]] for part in parts] == [[part["builder"].partition(":")[0]] for part in parts]
    assert "watch" not in identity and "horizon" not in identity["lr"]
    assert len(content["averagers"][0]["code"]) == 16
    copies = {path.name: path.read_text() for path in (whole / "code").iterdir()}
    assert copies == {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}


def test_a_run_with_every_kind_that_is_killed_ends_with_the_same_bytes(folder: Path, whole: Path) -> None:
    strike = Strike("lawa_exp.training.update:take_step", n=7)  # after the state of step 4
    done = run(*SMALL, *EVERY_KIND, "run_dir=killed", cwd=folder, strike=strike)
    assert done.returncode not in (0, 1, 2), done.stderr
    assert_same_run(train(folder, "killed", *EVERY_KIND), whole)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_every_kind_on_two_ranks(folder: Path, whole: Path, kind: str) -> None:
    path = train(folder, kind, *EVERY_KIND, f"trainer={kind}", ranks=2, warm=True)
    for one, two in zip(rows(whole), rows(path), strict=True):
        assert (one["step"], one["weights"]) == (two["step"], two["weights"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert two.get("weight_norm", 0) == pytest.approx(one.get("weight_norm", 0), rel=1e-4)


def test_settings_with_arguments_are_compared_and_hashed() -> None:
    one, same, other = (CustomDataset("x", "m:f", {"list": [n]}) for n in (1, 1, 2))
    assert one == same != other and hash(one) == hash(same)


def test_a_comment_keeps_the_run_and_an_edit_does_not(folder: Path, whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "custom")
    words = [*SMALL, *EVERY_KIND, "run_dir=whole"]
    for path in copy.glob("*.py"):
        path.write_text("# A comment.\n" + path.read_text().replace('"""A', '"""Well, a', 1))
    done = run(*words, cwd=copy)
    assert done.returncode == 0 and "done already" in done.stdout, done.stderr
    for name in ("spirals", "cyclic_rate", "squared_relu", "centralised_gradient"):
        path = copy / f"{name}.py"
        text = path.read_text()
        path.write_text(text + "\nEDITED = 1\n")
        done = run(*words, cwd=copy)
        assert done.returncode == 2 and "holds another trajectory" in done.stderr, (name, done.stderr)
        assert f"code.sources.{name}=" in done.stderr or name in ("squared_relu", "centralised_gradient"), done.stderr
        path.write_text(text)
    (copy / "geometric_window.py").write_text((copy / "geometric_window.py").read_text() + "\nEDITED = 1\n")
    done = run(*(word for word in words if not word.startswith("steps=")), "steps=16", cwd=copy)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "averagers.custom.builder=geometric_window:Geometric: its sources are not what " in done.stderr


def test_a_read_out_takes_a_record_or_trust(folder: Path, whole: Path, tmp_path: Path) -> None:
    """Of the model, its layers, the data, the batches and the averager; nothing else is needed, or runs."""
    copy = shutil.copytree(folder, tmp_path / "custom")
    for name in ("focal_loss", "cyclic_rate", "sign_descent", "with_replacement", "weight_norm", "half_way_back"):
        (copy / f"{name}.py").unlink()
    words = ["whole", "--avg", "custom,lawa", "--k", "2", "--spacing", "2"]
    done = run(*words, "--out", "recorded", module="lawa_exp.readout", cwd=copy)
    assert done.returncode == 0, done.stderr
    (kept,) = (r for r in rows(whole) if r.get("averager") == "custom" and (r["split"], r["step"]) == ("val", 12))
    at_end = [r for r in rows(copy / "recorded") if (r["split"], r["step"]) == ("val", 12)]
    assert [r["loss"] for r in at_end if r["weights"] == kept["weights"]] == [kept["loss"]]
    records = Path(os.environ["XDG_STATE_HOME"]) / STATE
    records.rename(records.with_name("away"))
    try:
        done = run(*words, "--out", "refused", module="lawa_exp.readout", cwd=copy)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "model.builder=perceptron:build with" in done.stderr and "--trust runs it" in done.stderr
        done = run(*words, "--out", "trusted", "--trust", module="lawa_exp.readout", cwd=copy)
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(records, ignore_errors=True)
        records.with_name("away").rename(records)
    assert rows(copy / "trusted") == rows(copy / "recorded")
    done = run("whole", module="lawa_exp.suggest", cwd=copy)
    assert done.returncode == 0 and "live" in done.stdout, done.stderr
    for name, key in {"spirals": "dataset", "squared_relu": "layers.custom", "doubling_batch": "batch"}.items():
        text = (copy / f"{name}.py").read_text()
        (copy / f"{name}.py").write_text(text + "\nEDITED = 1\n")
        done = run(*words, "--out", "edited", "--trust", module="lawa_exp.readout", cwd=copy)
        assert done.returncode == 2 and f"{key}.builder={name}:" in done.stderr, done.stderr
        assert "is not what whole was trained with" in done.stderr
        (copy / f"{name}.py").write_text(text)


def test_a_second_custom_has_a_name(folder: Path) -> None:
    second = "+layers.other={kind: custom, builder: 'again:cubed'}"
    path = train(folder, "named", *SQUARED, second, "steps=1", "avg=none", "lr.warmup_steps=0")
    content = yaml.safe_load((path / "config.yaml").read_text())
    assert [entry["name"] for entry in content["layers"]] == ["custom", "other"]
    assert [entry["builder"] for entry in content["identity"]["layers"]] == ["squared_relu:square", "again:cubed"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["optimizer=custom", f"optimizer.{WRONG}"], f"optimizer.{WRONG}: expected a torch.optim.Optimizer, got int"),
        (["layers=[custom]", f"layers.custom.{WRONG}"], f"layers.custom.{WRONG}: expected None, or a lawa_exp"),
        (["objective=custom", f"objective.{WRONG}"], f"objective.{WRONG}: expected a lawa_exp.seams"),
        (["update=[custom]", f"update.custom.{WRONG}"], f"update.custom.{WRONG}: expected a lawa_exp.seams.callback"),
        (["watch=[custom]", f"watch.custom.{WRONG}"], f"watch.custom.{WRONG}: expected a lawa_exp.seams.callback"),
        (["sampling=custom", f"sampling.{WRONG}"], f"sampling.{WRONG}: expected a lawa_exp.seams.sampler.Sampler"),
        (["batch=custom", f"batch.{WRONG}"], f"batch.{WRONG}: expected a lawa_exp.seams.batches.Batches"),
        (["lr=custom", f"lr.{WRONG}"], f"lr.{WRONG}: expected a function (batches, step) -> rate, got int"),
        (["scaling=custom", f"scaling.{WRONG}"], f"scaling.{WRONG}: expected a function (size, tokens_per_sample)"),
        (["fault=custom", f"fault.{WRONG}"], f"fault.{WRONG}: expected an object with rate_factor(step) or"),
        (["feedback=custom", f"feedback.{WRONG}"], f"feedback.{WRONG}: expected an instance of a dataclass"),
        ([f"dataset.{WRONG}"], f"dataset.{WRONG}: expected a lawa_exp.seams.dataset.Dataset, got int"),
        ([*GEOMETRIC[:2], "averagers.custom.args={k: 0}"], "averagers.custom.args.k=0: expected an integer of at"),
        ([*GEOMETRIC[:2], "averagers.custom.args={x: 0}"], "averagers.custom.args={'x': 0}: geometric_wind"),
        (["sampling=custom"], "sampling.builder is missing"),
        (["lr=custom", "lr.builder=absent:f"], "lr.builder=absent:f: expected package.module:function"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(folder: Path, tmp_path: Path, words: list[str], said: str) -> None:
    done = run(*SMALL, "lr.warmup_steps=0", "avg=none", "steps=2", *words, f"run_dir={tmp_path}", cwd=folder)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_what_was_attached_stays_attached_though_the_command_names_it_no_more(folder: Path) -> None:
    first = train(folder, "gone_on", *GEOMETRIC, "steps=6")
    train(folder, "gone_on", "avg=none", "steps=8")
    weights = {row["weights"] for row in rows(first) if row["split"] == "val" and row["step"] == 8}
    assert len(weights) == 2 and any(id.startswith("custom-geometric_window.Geometric") for id in weights)
