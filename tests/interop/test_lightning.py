"""The callback in the real Lightning: `pip install 'lawa_exp[interop]'`, without which `make test-all` skips this."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from averaged_files import average
from pages import example
from torch import Tensor

pl = pytest.importorskip("lightning.pytorch")

from lightning_callback import IDS, Live, Module, averagers, fit, loader, module, trainer  # noqa: E402

from lawa_exp.averaging import Ema, Lawa  # noqa: E402
from lawa_exp.averaging.lightning import AveragingCallback  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # it takes long to import
STEPS = 12


def checkpoints(folder: Path, **options: object) -> object:
    return pl.callbacks.ModelCheckpoint(folder / "ck", filename="{step}", save_top_k=-1, **options)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], t) for name, t in expected.items())


def averages_of(callback: AveragingCallback) -> dict[str, dict[str, Tensor]]:
    return {a.id: a.average() for a in callback.averagers}


def assert_closed_forms(found: dict[str, dict[str, Tensor]], weights: dict[int, dict[str, Tensor]]) -> None:
    """Against the weights after each of the 12 steps."""
    lawa, ema, swa = (found[id] for id in IDS)
    for name in lawa:
        of = {step: w[name].double() for step, w in weights.items()}
        assert torch.equal(lawa[name], ((of[8] + of[10] + of[12]) / 3).float())
        assert torch.equal(swa[name], (sum(of[s] for s in range(4, 13)) / 9).float())
        expected = 0.8**11 * of[1] + sum(0.2 * 0.8 ** (12 - s) * of[s] for s in range(2, 13))
        torch.testing.assert_close(ema[name].double(), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def loss_of(model: Module, first: int = 18) -> float:
    losses = [(model.eval()(x) - y).square().mean() for x, y in loader(first, 10)]
    return float(sum(losses) / len(losses))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Shuffled, with dropout; checkpoints and early stopping by an average."""
    folder = tmp_path_factory.mktemp("run")
    made, averaging, live = module(dropout=0.2), AveragingCallback(averagers), Live()
    ema = f"{IDS[1]}/val_loss"
    callbacks = [pl.callbacks.EarlyStopping(ema, patience=9), live, averaging, checkpoints(folder, monitor=ema)]
    logger = pl.loggers.CSVLogger(folder)
    done = fit(folder, made, callbacks, logger=logger)
    return {"folder": folder, "module": made, "averaging": averaging, "live": live, "trainer": done, "logger": logger}


def test_averages_are_the_closed_forms_whatever_is_accumulated(run):
    """Four batches make a step, at the end of an epoch one; the callback's hook came 36 times for 12 steps."""
    assert run["trainer"].global_step == STEPS == max(run["module"].weights) and len(run["module"].losses) == 36
    assert_closed_forms(averages_of(run["averaging"]), run["module"].weights)


def test_the_training_is_that_of_a_trainer_without_the_callback(run, tmp_path):
    alone, live = module(dropout=0.2), Live()
    fit(tmp_path, alone, [live])
    assert alone.losses == run["module"].losses
    assert_same(alone.state_dict(), run["module"].state_dict())
    assert live.losses == run["live"].losses and live.starts == run["live"].starts == 5


def test_validated_under_their_own_names_once_they_are_defined(run):
    with Path(run["logger"].log_dir, "metrics.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    steps = {name: [i for i, row in enumerate(rows) if f"{name}/val_loss" in row] for name in IDS}
    assert steps == {IDS[0]: [2, 4, 6], IDS[1]: [0, 2, 4, 6], IDS[2]: [2, 4, 6]}
    assert [row["val_loss"] for row in rows[1::2]] == pytest.approx(run["live"].losses)
    assert all(row["step"] == live["step"] for row, live in zip(rows[::2], rows[1::2], strict=True))
    metrics = run["trainer"].callback_metrics
    for name, averaged in averages_of(run["averaging"]).items():
        by_hand = Module()
        by_hand.load_state_dict(averaged)
        assert metrics[f"{name}/val_loss"].item() == pytest.approx(loss_of(by_hand), rel=1e-6)
        assert metrics[f"{name}/val_hidden"] == metrics[f"{name}/val_mean"] == metrics[f"{name}/val_loss"]
        assert metrics[f"{name}/val_loss"] != metrics["val_loss"]
    assert not any("hidden" in name for row in rows for name in row)


def test_beside_lightnings_own_average(run, tmp_path):
    """Its EMA is ours; it goes into the model at the end, and neither changes the other."""
    for first in (True, False):
        made, averaging = module(dropout=0.2), AveragingCallback(averagers)
        own = pl.callbacks.EMAWeightAveraging(decay=0.8)
        order = [averaging, own] if first else [own, averaging]
        done = fit(tmp_path / str(first), made, [*order, checkpoints(tmp_path / str(first))])
        assert made.losses == run["module"].losses
        for name, averaged in averages_of(averaging).items():
            assert_same(averaged, averages_of(run["averaging"])[name])
            file = tmp_path / str(first) / "ck" / "averages" / f"{name}.ckpt"
            assert_same(torch.load(file, weights_only=True)["state_dict"], averaged)
            metric = f"{name}/val_loss"
            assert done.callback_metrics[metric] == run["trainer"].callback_metrics[metric]
        for name, tensor in averages_of(averaging)[IDS[1]].items():
            torch.testing.assert_close(made.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
        saved = torch.load(tmp_path / str(first) / "ck" / "step=12.ckpt", weights_only=True)
        assert_same(saved["current_model_state"], run["module"].state_dict())
        assert_same(saved["averages"][IDS[0]], averages_of(averaging)[IDS[0]])


def test_several_sets_in_the_middle_of_an_epoch_with_workers_that_stay(tmp_path):
    averaging, made = AveragingCallback(averagers), module()
    done = trainer(tmp_path, [averaging], val_check_interval=4, max_epochs=1, limit_val_batches=1.0)
    stays = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
    done.fit(made, loader(0, 18), [loader(18, 10, **stays), loader(28, 10)])
    assert done.global_step == 9
    with torch.no_grad():
        for name in ("", *(f"{a.id}/" for a in averaging.averagers)):
            by_hand = Module()
            weights = made.weights[8] if not name else None
            by_hand.load_state_dict(weights or after_eight(made.weights, name))
            for i, first in enumerate((18, 28)):
                found = done.callback_metrics[f"{name}val_loss/dataloader_idx_{i}"].item()
                assert found == pytest.approx(loss_of(by_hand, first), rel=1e-5)


def after_eight(weights: dict[int, dict[str, Tensor]], name: str) -> dict[str, Tensor]:
    model = Module()
    twin = next(a for a in averagers(model) if a.id == name.rstrip("/"))
    for step in range(1, 9):
        model.load_state_dict(weights[step])
        twin.update(step)
    return twin.average()


def test_saved_beside_the_live_weights(run, tmp_path):
    folder = run["folder"] / "ck"
    saved = torch.load(folder / "step=12.ckpt", weights_only=True)
    assert_same(saved["state_dict"], run["module"].state_dict())
    assert list(saved["averages"]) == IDS
    for name, averaged in averages_of(run["averaging"]).items():
        assert_same(saved["averages"][name], averaged)
        file = folder / "averages" / f"{name}.ckpt"
        assert_same(torch.load(file, weights_only=True)["state_dict"], averaged)
        assert_same(Module.load_from_checkpoint(file).state_dict(), averaged)
    assert sorted(p.stem for p in (folder / "averages").iterdir()) == sorted(IDS)
    first = torch.load(folder / "step=3.ckpt", weights_only=True)
    assert list(first["averages"]) == [IDS[1]]
    # And `lawa average` reads both sorts.
    average("--trajectory", folder, "--k", 2, "--spacing", 3, "--at", 12, "--out", tmp_path / "live")
    (file,) = (tmp_path / "live").rglob("*.ckpt")
    states = [run["module"].weights[step] for step in (9, 12)]
    mean = {n: ((states[0][n].double() + states[1][n].double()) / 2).float() for n in states[0]}
    assert_same(torch.load(file, weights_only=True)["state_dict"], mean)
    files = [folder / "averages" / f"{name}.ckpt" for name in IDS[:2]]
    average(*files, "--include-averages", "--out", tmp_path / "averages")
    made = Module.load_from_checkpoint(tmp_path / "averages" / files[1].name)
    lawa, ema, _ = averages_of(run["averaging"]).values()
    assert_same(made.state_dict(), {n: ((lawa[n].double() + ema[n]) / 2).float() for n in lawa})


def test_in_the_trainers_other_loops(run):
    """`applied` puts an average into the module for test, validate and predict."""
    before = {n: t.clone() for n, t in run["module"].state_dict().items()}
    lawa, made = run["averaging"].averagers[0], run["trainer"]
    with lawa.applied():
        (found,) = made.validate(run["module"], loader(18, 10), verbose=False)
    by_hand = Module()
    by_hand.load_state_dict(lawa.average())
    assert found["val_loss"] == pytest.approx(loss_of(by_hand), rel=1e-6)
    assert not any("/" in name for name in found)
    assert_same(run["module"].state_dict(), before)


def test_killed_and_resumed_it_has_the_same_bytes(tmp_path):
    whole, expected = module(), AveragingCallback(averagers)
    fit(tmp_path / "whole", whole, [expected, checkpoints(tmp_path / "whole")])
    killed = module()
    killed.killed_at = 8
    with pytest.raises(InterruptedError):
        fit(tmp_path, killed, [AveragingCallback(averagers), checkpoints(tmp_path)])
    resumed, averaging = module(), AveragingCallback(averagers)
    done = fit(tmp_path, resumed, [averaging, checkpoints(tmp_path)], tmp_path / "ck" / "step=6.ckpt")
    assert min(resumed.weights) == 6 and done.global_step == STEPS
    for name, averaged in averages_of(expected).items():
        assert_same(averages_of(averaging)[name], averaged)
        files = [root / "ck" / "averages" / f"{name}.ckpt" for root in (tmp_path, tmp_path / "whole")]
        assert_same(*(torch.load(file, weights_only=True)["state_dict"] for file in files))
    # A second `fit` of the same trainer goes on, and one of another module begins anew.
    done.fit_loop.max_epochs = 5
    done.fit(resumed, loader(0, 18), loader(18, 10))
    assert averaging.averagers[2].averager.count == 12
    fit(tmp_path / "new", module(), [averaging], max_epochs=2)
    assert averaging.averagers[2].averager.count == 3


def test_what_is_refused(tmp_path):
    fit(tmp_path, module(), [checkpoints(tmp_path)], max_epochs=1)
    file = tmp_path / "ck" / "step=3.ckpt"
    with pytest.raises(ValueError, match=r"step=3\.ckpt, at step 3, holds no averages\. .* resume=False"):
        fit(tmp_path, module(), [AveragingCallback(averagers)], file)
    late = AveragingCallback(averagers, resume=False)
    fit(tmp_path, module(), [late, checkpoints(tmp_path)], file, max_epochs=2)
    assert late.averagers[1].averager.count == 3
    other = AveragingCallback(lambda model: [Ema(model, decay=0.5)])
    with pytest.raises(ValueError, match=r"step=6\.ckpt holds no ema-d0.5-e1, but lawa-k3-s2, ema-d0.8-e1"):
        fit(tmp_path, module(), [other], tmp_path / "ck" / "step=6.ckpt")
    with pytest.raises(ValueError, match=r"two averagers are the same: ema-d0.9-e1, ema-d0.9-e1"):
        fit(tmp_path, module(), [AveragingCallback(lambda model: [Ema(model, 0.9), Ema(model, 0.9)])])


@pytest.mark.filterwarnings("error:.*running statistics")  # they are computed here
def test_statistics_of_norms_are_those_of_each_average(tmp_path):
    averaging = AveragingCallback(lambda m: [Lawa(m, k=2, spacing=2), Ema(m)], batches=lambda: loader(0, 18))
    made = module(norm=True)
    done = fit(tmp_path, made, [averaging, checkpoints(tmp_path)])
    saved = torch.load(tmp_path / "ck" / "step=12.ckpt", weights_only=True)["averages"]
    for averager in averaging.averagers:
        by_hand = Module(norm=True)
        by_hand.load_state_dict(averager.full_average())
        torch.optim.swa_utils.update_bn(loader(0, 18), by_hand)
        assert_same(saved[averager.id], by_hand.state_dict())
        file = tmp_path / "ck" / "averages" / f"{averager.id}.ckpt"
        assert_same(Module.load_from_checkpoint(file).state_dict(), by_hand.state_dict())
        assert done.callback_metrics[f"{averager.id}/val_loss"].item() == pytest.approx(loss_of(by_hand), rel=1e-6)
    assert_same(made.state_dict(), made.weights[STEPS])


def test_the_page_on_loops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    exec(example("loops.md", "pl.LightningModule"), names)
    averager = names["averaging"].averagers[0]
    assert_same(names["average"].state_dict(), averager.average())
    assert averager.averager.snapshot_steps == [48, 52, 56, 60, 64] and "lawa-k5-s4" in names["saved"]["averages"]


@pytest.mark.distributed
def test_two_ranks_of_ddp(tmp_path):
    worker = Path(__file__).with_name("lightning_callback.py")
    done = subprocess.run([sys.executable, worker, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (first, weights, metrics), (second, _, _) = (torch.load(tmp_path / f"rank{i}.pt") for i in (0, 1))
    steps = max(weights)
    assert steps == 8 and first.keys() == second.keys() == {*IDS}
    for name in first:
        assert_same(first[name], second[name])
        assert f"{name}/val_loss" in metrics
        (file,) = tmp_path.rglob(f"checkpoints/averages/{name}.ckpt")
        assert_same(torch.load(file, weights_only=True)["state_dict"], first[name])
    lawa = {n: (sum(weights[s][n].double() for s in (4, 6, 8)) / 3).float() for n in weights[8]}
    assert_same(first[IDS[0]], lawa)
