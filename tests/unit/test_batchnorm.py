"""BatchNorm: the statistics that weights are evaluated with, and groups of samples that share them in training."""

import copy
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import IDS, UPDATE, Strike, assert_same_run, contents, lines_of, rows, run, tiny
from normed import NORMED, Normed
from torch import nn
from torch.nn import functional as F

from lawa_exp.averaging import EmaSettings, LawaSettings, SwaSettings, WmaSettings, build_averager
from lawa_exp.averaging.settings import observed_steps
from lawa_exp.averaging.tensors import averaged_names, live_tensors, statistics_names
from lawa_exp.averaging.window import Window
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.layers.ghost_norm import group_norms
from lawa_exp.axes.layers.statistics import TrainingStatistics
from lawa_exp.dashboard.collect import val_rows
from lawa_exp.evaluation.batchnorm import policy, recalibrate
from lawa_exp.evaluation.evaluate import Evaluation, fixed_set
from lawa_exp.evaluation.numerics import autocast_for, scorer_for, seeded_model
from lawa_exp.launch.compose import compose, read
from lawa_exp.results.statistics import curve, steps_saved
from lawa_exp.results.summary import read_run
from lawa_exp.runs.plan import show_plan
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.seams.samples import Pass, Samples
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.safetensors import read_tensors
from lawa_exp.system.distributed import Ranks

POLICIES = ["recalibrate", "average", "latest"]
CPU = torch.device("cpu")
ASKED = [*NORMED, "k=[1,3]"]
EVALUATED = ["lawa-k1-s10", *IDS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training with each policy. Not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    for bn in POLICIES:
        done = run(*ASKED, f"evaluate.bn={bn}", f"run_dir={root / bn}", warm=True)
        assert done.returncode == 0, done.stderr
    return {bn: root / bn for bn in POLICIES}


def prepared(*arguments: str):
    ((values, overrides),), _ = compose(list(arguments))
    return prepare(*read(values, overrides), CPU, Ranks())


def losses(folder: Path, id: str, loss: str = "loss") -> dict[int, float]:
    return {r["step"]: r[loss] for r in rows(folder) if r["weights"] == id and r["split"] == "val"}


def inputs_of(p: Prepared, first: int, count: int) -> torch.Tensor:
    """Those of so many samples of training."""
    samples = in_epochs(first, count, p.data.sizes["train"], p.config.seed)
    return torch.from_numpy(p.data.train_batch(p.config.seed, samples)[0])


def evaluation(p: Prepared, model: nn.Module) -> Evaluation:
    scorer = scorer_for(p.config, model, p.data.task)
    return Evaluation(scorer, p.data, p.config.evaluate, Ranks(), CPU, autocast_for(p.config, CPU))


def samples(count: int) -> Samples:
    return Samples(np.arange(count), np.arange(count))


def read_out(folder: Path, *flags: str, module: str = "lawa_exp.readout"):
    return run(str(folder), *flags, module=module, warm=True)


@pytest.mark.parametrize("samples, sizes", [(100, [32, 32, 32, 4]), (97, [32, 32, 32]), (20, [20])])
def test_recalibration_is_that_of_torch(runs: dict[str, Path], samples: int, sizes: list[int]) -> None:
    """update_bn on the same batches; a last batch of one sample is left out. The rest of the model stays as it was."""
    p = prepared(*NORMED, f"evaluate.bn_samples={samples}")
    model = seeded_model(p.config, CPU)
    trained = read_tensors(runs["latest"] / "trajectory/step_00000060/model.safetensors")
    model.load_state_dict(trained)
    model.flat_norm.eval()
    reference = copy.deepcopy(model)
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    batches = [inputs_of(p, f, n) for f, n in zip(firsts, sizes, strict=True)]
    reference.flat_norm.train()
    torch.optim.swa_utils.update_bn(batches, reference)
    recalibrate(model, evaluation(p, model), p.config)
    for name in statistics_names(model):
        found, expected = model.state_dict()[name], reference.state_dict()[name]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(found, trained[name], rtol=1e-3)
    assert model.training and model.norm.training and not model.flat_norm.training
    assert model.norm.momentum == model.flat_norm.momentum == 0.1


def test_recalibration_with_a_module_called_twice_and_dropout() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.drop, self.norm = nn.Embedding(256, 4), nn.Dropout(0.5), nn.BatchNorm1d(32)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.norm(self.drop(self.norm(3 * self.first(tokens) + 1)))

    p = prepared(*NORMED, "evaluate.bn_samples=64")
    model = Twice()
    reference = copy.deepcopy(model)
    reference.drop.p = 0.0  # training sees it; evaluation, for which the statistics are, does not
    batches = [inputs_of(p, first, 32) for first in (0, 32)]
    torch.optim.swa_utils.update_bn(batches, reference)
    recalibrate(model, evaluation(p, model), p.config)
    torch.testing.assert_close(model.norm.running_mean, reference.norm.running_mean)
    torch.testing.assert_close(model.norm.running_var, reference.norm.running_var)


@pytest.mark.parametrize(
    "settings",
    [LawaSettings(3, 2, 0), WmaSettings(3, 2, 0), SwaSettings(2, 3), EmaSettings(0.8, 1, 0, False)],
    ids=lambda s: s.kind,
)
def test_averaged_statistics_are_the_closed_form_and_an_average_has_the_latest(settings: object) -> None:
    torch.manual_seed(0)
    model = Normed()
    names = statistics_names(model)
    assert names == {f"{m}.running_{s}" for m in ("norm", "flat_norm") for s in ("mean", "var")}
    averager = build_averager(settings, averaged_names(model), Window(), names)
    alone = build_averager(settings, averaged_names(model), Window())
    seen = {}
    for step in range(1, 14):
        model(torch.randint(256, (4, 8)))
        with torch.no_grad():
            model.head.weight += torch.randn_like(model.head.weight)
        live = live_tensors(model)
        seen[step] = {n: t.clone() for n, t in live.items()}
        averager.update(step, live)
        alone.update(step, live)
    observed = list(observed_steps(settings, 13))
    weights = settings.coefficients(observed)
    observed = observed[len(observed) - len(weights) :]
    for name in names:
        expected = sum(w * seen[s][name].double() for w, s in zip(weights, observed, strict=True)) / sum(weights)
        torch.testing.assert_close(averager.statistics()[name].double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(expected, seen[observed[-1]][name].double(), rtol=1e-3)
    average, plain = averager.average(), alone.average()
    assert average.keys() == plain.keys()
    for name, tensor in average.items():
        assert torch.equal(tensor, plain[name])
        if name in names:
            assert torch.equal(tensor, seen[observed[-1]][name])


def test_policies_differ_in_evaluation_alone(runs: dict[str, Path]) -> None:
    """The training rows, the snapshots and the tensors of the saved states are the same bytes."""
    trained = [lines_of(folder, "live", split="train") for folder in runs.values()]
    assert trained[0] == trained[1] == trained[2] and len(trained[0]) == 60 and "bn" not in trained[0][0]
    files = [{f: h for f, h in contents(folder).items() if f.endswith("safetensors")} for folder in runs.values()]
    files = [{f: h for f, h in of.items() if not f.startswith("averages")} for of in files]
    assert files[0] == files[1] == files[2] and {f.split("/")[0] for f in files[0]} == {"trajectory", "resume"}
    running = losses(runs["latest"], "live", "loss_running_bn")
    for bn, folder in runs.items():
        found = [r for r in rows(folder) + rows(folder, "readouts/test/metrics.jsonl") if r["split"] != "train"]
        assert {r["bn"] for r in found} == {bn} and {r["weights"] for r in found} == {"live", *EVALUATED}
        assert all(("loss_running_bn" in r) == (r["weights"] == "live") for r in found)
        assert losses(folder, "live", "loss_running_bn") == running and len(running) == 4
        apart = [losses(folder, "live")[s] != loss for s, loss in running.items()]
        assert apart == [bn == "recalibrate"] * 4
    for id in IDS:  # of weights that are far apart
        for step in losses(runs["latest"], id):
            if (id, step) != ("swa-e10-from20", 20):
                found = [losses(runs[bn], id)[step] for bn in POLICIES]
                assert min(abs(a - b) for a, b in zip(found, [*found[1:], found[0]], strict=True)) > 1e-4, (id, found)


@pytest.mark.parametrize("bn", POLICIES)
def test_an_average_that_is_the_live_weights_gains_nothing(runs: dict[str, Path], bn: str) -> None:
    """LAWA of one snapshot, at the steps whose weights it has: the live loss to the last bit, on val and on test."""
    found = rows(runs[bn])
    live, one = curve(found, "live"), curve(found, "lawa-k1-s10")
    assert one == [point for point in live if point[0] in (20, 40, 60)]
    assert [steps_saved(live, step, loss) for step, loss in one] == [(0, True)] * 3
    test = {r["weights"]: r["loss"] for r in rows(runs[bn], "readouts/test/metrics.jsonl")}
    assert test["lawa-k1-s10"] == test["live"]
    assert re.search(r"\| +lawa-k1-s10 \| +\d\.\d+ \| +\+0\.0000 \| +0 \|", (runs[bn] / "report.md").read_text())


@pytest.mark.parametrize("bn", POLICIES)
def test_the_file_of_an_average_gives_the_loss_that_was_printed(runs: dict[str, Path], bn: str) -> None:
    """In plain torch. Of the policies' files all tensors but the running statistics are the same bytes."""
    p = prepared(*NORMED)
    inputs, targets = map(torch.from_numpy, p.data.eval_batch("val", fixed_set(p.data.sizes["val"], 32)))
    for id in EVALUATED:
        path = f"averages/{id}/step_00000060/model.safetensors"
        tensors, latest = (read_tensors(runs[policy] / path) for policy in (bn, "latest"))
        assert {n for n in tensors if not torch.equal(tensors[n], latest[n])} == (
            statistics_names(Normed()) if bn == "recalibrate" or (bn == "average" and "-k1" not in id) else set()
        )
        model = Normed()
        model.load_state_dict(tensors)
        with torch.no_grad():
            loss = F.cross_entropy(model.eval()(inputs).flatten(0, 1), targets.flatten().long())
        assert float(loss) == pytest.approx(losses(runs[bn], id)[60], rel=1e-6)


@pytest.mark.parametrize("bn", POLICIES)
def test_read_outs_are_the_rows_of_a_training_with_that_policy(runs: dict[str, Path], bn: str, tmp_path: Path) -> None:
    flags = ["--bn", bn, "--avg", "lawa,swa", "--k", "1,3", "--every", "10", "--start", "20", "--out", str(tmp_path)]
    done = run(str(runs["recalibrate"]), *flags, "--spacing", "10", module="lawa_exp.readout", warm=True)
    assert done.returncode == 0, done.stderr
    swa = lines_of(tmp_path, "swa-e10-from20")
    assert swa == lines_of(runs[bn], "swa-e10-from20") != []
    assert lines_of(tmp_path, "live") == ([] if bn == "recalibrate" else lines_of(runs[bn], "live")[1:])
    assert lines_of(tmp_path, "live", split="test") == lines_of(
        runs[bn], "live", split="test", name="readouts/test/metrics.jsonl"
    )
    assert losses(tmp_path, "lawa-k1-s10-from20") == {s: losses(runs[bn], "live")[s] for s in (20, 40, 60)}
    ours = losses(tmp_path, "lawa-k3-s10-from20")
    assert ours == {s: loss for s, loss in losses(runs[bn], "lawa-k3-s10").items() if s in ours} != {}
    test = "readouts/test/metrics.jsonl"
    best = next(r for r in rows(tmp_path) if r["split"] == "test" and r["weights"] != "live")
    assert best["bn"] == bn
    there = {r["loss"] for r in rows(runs[bn], test) if r["weights"] != "live"}
    assert best["loss"] in there


def test_names_of_read_outs_and_policies_that_cannot_be(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["average"], folder)
    for flags in ([], ["--bn", "latest"]):
        done = run(str(folder), "--k", "2", "--spacing", "10", *flags, module="lawa_exp.readout", warm=True)
        assert done.returncode == 0, done.stderr
    assert {p.name for p in (folder / "readouts").iterdir()} == {"test", "lawa-k2-s10", "lawa-k2-s10-bn-latest"}
    kept = ["--avg", "ema", "--decay", "0.9", "--every", "1"]
    for bn in ("average", "recalibrate"):
        assert read_out(folder, *kept, "--bn", bn, "--name", bn).returncode == 0
        assert losses(folder / "readouts" / bn, "ema-d0.9-e1")[60] == losses(runs[bn], "ema-d0.9-e1")[60]
    assert {row["bn"] for row in val_rows(folder)} == {"average"}, "the dashboard compares what is evaluated alike"
    refused = read_out(folder, *kept, "--bn", "latest")
    assert refused.returncode == 2
    assert "kept averages have the statistics of evaluate.bn=average: --bn recalibrate" in refused.stderr
    refused = run(str(folder), "--bn", "latest", "--evaluate", "a:b", module="lawa_exp.readout", warm=True)
    assert refused.returncode == 2 and refused.stderr.startswith("error: --bn=latest: not with --evaluate")


def test_read_outs_with_other_statistics_evaluate_the_live_weights_alike(runs: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--avg", "lawa,ema", "--k", "1", "--spacing", "10", "--decay", "0.9", "--every", "1"]
    done = read_out(runs["latest"], "--bn", "recalibrate", *flags, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "evaluated again with evaluate.bn=recalibrate, at 3 steps" in done.stdout
    assert lines_of(tmp_path / "out", "live") == lines_of(runs["recalibrate"], "live")[1:]
    assert losses(tmp_path / "out", "lawa-k1-s10") == losses(tmp_path / "out", "live")
    kept = {60: losses(runs["recalibrate"], "ema-d0.9-e1")[60]}  # the only step whose file was kept
    assert losses(tmp_path / "out", "ema-d0.9-e1") == kept
    done = read_out(runs["latest"], *flags, "--out", str(tmp_path / "latest"))
    assert lines_of(tmp_path / "latest", "live") == [] and "evaluated again" not in done.stdout
    assert losses(tmp_path / "latest", "ema-d0.9-e1")[60] == losses(runs["latest"], "ema-d0.9-e1")[60]

    folder = tmp_path / "run"
    shutil.copytree(runs["latest"], folder)
    shutil.rmtree(folder / "trajectory/step_00000040")
    again = ["--bn", "recalibrate", "--avg", "lawa", "--k", "3", "--spacing", "10", "--out", str(tmp_path / "gap")]
    done = read_out(folder, *again)
    assert done.returncode == 0 and "at step 40 no snapshot was kept to evaluate them again: left out" in done.stdout
    assert list(losses(tmp_path / "gap", "live")) == [20, 60]
    shutil.rmtree(folder / "trajectory")
    refused = read_out(folder, "--bn", "recalibrate", "--avg", "ema", "--decay", "0.9", "--every", "1")
    assert refused.returncode == 2 and "no snapshot was kept to evaluate them again; choose latest" in refused.stderr


@pytest.mark.parametrize("bn", ["recalibrate", "latest"])
def test_checkpoints_without_rows_are_evaluated_alike(runs: dict[str, Path], bn: str, tmp_path: Path) -> None:
    settings = [o for o in NORMED if o.startswith(("model.", "evaluate.", "trainer."))]
    flags = ["--model", "custom", "--dataset", "pydocs", "--bn", bn, "--avg", "lawa", "--k", "1", "--spacing", "20"]
    done = read_out(runs["latest"] / "trajectory", *flags, "--out", str(tmp_path), *settings)
    assert done.returncode == 0, done.stderr
    for key in ("loss", "loss_running_bn", "bn"):
        found = losses(tmp_path, "live", key)
        assert {s: found[s] for s in (20, 40, 60)} == {s: losses(runs[bn], "live", key)[s] for s in (20, 40, 60)}
    one = losses(tmp_path, "lawa-k1-s20")
    assert {s: one[s] for s in (20, 40, 60)} == {s: losses(tmp_path, "live")[s] for s in (20, 40, 60)}


def test_what_is_trained_is_not_judged_by_how_it_is_evaluated(runs: dict[str, Path], tmp_path: Path) -> None:
    """A finished run, asked for again with other statistics: what is read out has its own, and a rerun is no other."""
    folder = tmp_path / "run"
    shutil.copytree(runs["recalibrate"], folder)
    asked = [*NORMED, "k=[1,3,2]", f"run_dir={folder}", "evaluate.bn=latest"]
    done = run(*asked, warm=True)
    assert done.returncode == 0, done.stderr
    assert "its last evaluations are with evaluate.bn=recalibrate evaluate.bn_samples=100" in done.stdout
    out = folder / "readouts/lawa-k2-s10"
    assert {(r["weights"], r["bn"]) for r in rows(out)} == {("lawa-k2-s10", "recalibrate")}
    shown, _ = read_run(folder, ["lawa-k1-s10", "lawa-k2-s10"], 60)  # of a summary
    assert dict(curve(shown, "live"))[60] == dict(curve(shown, "lawa-k1-s10"))[60]
    for bn in ("latest", "recalibrate"):
        done = run(*asked, f"evaluate.bn={bn}", "rerun=true", warm=True)
        assert done.returncode == 0 and "the rerun equals the first training" in done.stdout, done.stdout
        assert {r["bn"] for r in rows(folder) if r["split"] == "val"} == {bn}


def test_weights_of_schedule_free_have_statistics_of_their_own(tmp_path: Path) -> None:
    """Its averaged weights x, with the running statistics of y in training, and recalibrated as any others."""
    asked = [*NORMED, "optimizer=schedule_free", "lr=constant", "lr.peak=0.01", "avg=lawa", "k=1", "steps=20"]
    asked = [a for a in asked if not a.startswith(("averagers.", "steps=60", "k=3"))]
    done = run(*asked, f"run_dir={tmp_path}", warm=True)
    assert done.returncode == 0, done.stderr
    (of_live,) = (r for r in rows(tmp_path) if r["weights"] == "live" and r["split"] == "val" and r["step"] == 20)
    assert of_live["loss"] == losses(tmp_path, "lawa-k1-s10")[20] != of_live["loss_running_bn"]
    p = prepared(*asked)
    model = Normed()
    model.load_state_dict(read_tensors(tmp_path / "trajectory/step_00000020/model.safetensors"))
    inputs, targets = map(torch.from_numpy, p.data.eval_batch("val", fixed_set(p.data.sizes["val"], 32)))

    @torch.no_grad()
    def loss() -> float:
        return float(F.cross_entropy(model.eval()(inputs).flatten(0, 1), targets.flatten().long()))

    assert loss() == pytest.approx(of_live["loss_running_bn"], rel=1e-6)
    parts = [(first, min(32, 100 - first)) for first in range(0, 100, 32)]
    batches = [inputs_of(p, *part) for part in parts]
    torch.optim.swa_utils.update_bn(batches, model)
    assert loss() == pytest.approx(of_live["loss"], rel=1e-5)


def test_averages_stay_finite_where_the_training_does_not(tmp_path: Path) -> None:
    """The EMA has seen an update so large that nothing could be recalibrated on it."""
    fault = ["fault=rate", "fault.at=30", "fault.length=5", "fault.factor=1e38"]
    done = run(*NORMED, *fault, f"run_dir={tmp_path}", warm=True)
    assert done.returncode == 3, done.stderr
    found = list(tmp_path.glob("averages/*/step_0000003*/model.safetensors"))
    assert len(found) == 3 and all(t.isfinite().all() for path in found for t in read_tensors(path).values())


@pytest.mark.parametrize("bn", ["recalibrate", "average"])
def test_killed_and_continued(bn: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "undisturbed"
    asked = [*NORMED, f"evaluate.bn={bn}", "batch.norm_group=2"]
    assert run(*asked, f"run_dir={other}", warm=True).returncode == 0
    died = run(*asked, f"run_dir={folder}", strike=Strike(UPDATE, n=38))
    assert died.returncode == -9, died.stderr
    done = run(*asked, f"run_dir={folder}", warm=True)
    assert done.returncode == 0 and "continuing from step 30" in done.stdout, done.stderr
    assert_same_run(folder, other)


def test_models_without_it_say_nothing_of_it() -> None:
    p = prepared(*tiny())
    assert policy(p.config, seeded_model(p.config, CPU)) is None
    assert "norm_group" not in p.identity["batch"]
    assert prepared(*NORMED, "evaluate.bn=latest").trajectory == prepared(*NORMED).trajectory
    assert prepared(*NORMED, "batch.norm_group=4").trajectory != prepared(*NORMED).trajectory


def test_how_many_samples_share_statistics_is_in_the_id_where_they_are_fewer_than_the_batch() -> None:
    """The ids of a whole batch, and with norm_group, are those that they were at commit a6535a4."""

    def planned(*arguments: str, **batch: Any) -> Callable[..., Prepared]:
        ((values, overrides),), _ = compose(list(arguments))
        config, options = read(values, overrides)
        config = replace(config, batch=replace(config.batch, **batch))

        def on(ranks: int, micro: int | None = None) -> Prepared:
            asked = replace(config, trainer=config.trainer.changed(micro_batch=micro))
            return prepare(asked, options, CPU, Ranks(0, ranks, 0, ranks))

        return on

    resnet = ["model=resnet20", "model.layers=8", "dataset=digits"]
    of = planned(*resnet, size=32)
    assert of(1).trajectory == of(1, 32).trajectory == "e8ce6f57ae40"
    micro = of(1, 8)
    assert micro.identity["batch"]["norm_samples"] == 8
    assert of(1, 16).trajectory == of(2).trajectory != micro.trajectory != of(1).trajectory
    described = show_plan(micro, Ranks())
    assert "BatchNorm statistics of 8 samples; batch.norm_group=8 fixes this on any machine" in described
    of = planned(*resnet, size=32, norm_group=8)
    assert {of(1).trajectory, of(2).trajectory, of(1, 8).trajectory} == {"ca4fd497b186"}
    of = planned(*resnet, "batch=steps", size=32, sizes=(64,), at=(1.0,))
    assert of(1, 32).identity["batch"]["norm_samples"] == [32, 32]
    of = planned("model=cct_2", "dataset=digits")  # without BatchNorm
    assert of(1).trajectory == of(2).trajectory
    of = planned(*NORMED)  # a model from outside
    assert of(1).trajectory != of(2).trajectory


def test_a_run_goes_on_with_as_many_samples_that_share_statistics(runs: dict[str, Path]) -> None:
    refused = run(*ASKED, "trainer.micro_batch=2", f"run_dir={runs['latest']}", warm=True)
    assert refused.returncode == 2 and "batch.norm_samples=None, this command 2: samples that share" in refused.stderr


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("cls, shape", [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (5,)), (nn.BatchNorm2d, (4, 3))])
def test_groups_are_as_if_torch_saw_one_after_the_other(cls: type, shape: tuple, momentum: float, affine: bool) -> None:
    """Outputs, gradients and running statistics of 3 steps of 12 samples in groups of 3, in passes of 6."""
    torch.manual_seed(1)
    model = nn.Sequential(cls(7, momentum=momentum, affine=affine))
    if affine:
        nn.init.normal_(model[0].weight)
    reference = copy.deepcopy(model)
    group_norms(model, 3)
    assert model.state_dict().keys() == reference.state_dict().keys()
    statistics = TrainingStatistics(model, 3, Ranks())
    for step in range(3):
        ours = torch.randn(12, 7, *shape) * (step + 1) + step
        theirs = ours.clone()
        ours.requires_grad_(), theirs.requires_grad_()
        slope = torch.randn(12, 7, *shape)
        for first in (0, 6):
            statistics.before_pass(Pass(step + 1, first, 0, samples(6), 12, 12, {}, first == 6))
            found = model(ours[first : first + 6])
            expected = torch.cat([reference(theirs[i : i + 3]) for i in (first, first + 3)])
            torch.testing.assert_close(found, expected)
            (found * slope[first : first + 6]).sum().backward()
            (expected * slope[first : first + 6]).sum().backward()
        statistics.after_passes(step + 1)
        torch.testing.assert_close(ours.grad, theirs.grad)
        for (name, mine), theirs_too in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs_too, msg=lambda m, name=name: f"{name}: {m}")
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    model.eval(), reference.eval()
    assert torch.equal(model(ours), model(ours))
    torch.testing.assert_close(model(ours), reference(ours))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (tiny("batch.norm_group=2"), "batch.norm_group=2: expected null, the model has no BatchNorm"),
        ([*NORMED, "batch.norm_group=3"], "batch.norm_group=3: expected null, or a divisor of 8, the samples of"),
        ([*NORMED, "batch.norm_group=4", "trainer.micro_batch=2"], "trainer.micro_batch=2: expected a multiple of"),
        ([*NORMED, "evaluate.bn=all"], "evaluate.bn=all: expected one of recalibrate, average, latest"),
        ([*NORMED, "evaluate.bn_samples=0"], "evaluate.bn_samples=0: expected an integer of at least 1 or one of all"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    refused = run(*arguments, f"run_dir={tmp_path / 'run'}", warm=True)
    assert refused.returncode == 2 and refused.stderr.startswith(f"error: {message}"), refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_run_whose_policy_changed_is_shown_with_the_last_one(runs: dict[str, Path], tmp_path: Path) -> None:
    """By the training, by its report and when it is asked for again: no table has losses of two kinds."""
    folder = shutil.copytree(runs["recalibrate"], tmp_path / "run")
    asked = [*(o for o in ASKED if o != "steps=60"), "steps=80", "evaluate.bn=latest", f"run_dir={folder}"]
    said = "evaluations with evaluate.bn=latest alone; those with other BatchNorm statistics (the last: step 60)"
    trained, again = (run(*asked, warm=True) for _ in range(2))
    assert trained.returncode == again.returncode == 0 and "done already" in again.stdout, again.stderr
    for text in (trained.stdout, again.stdout, (folder / "report.md").read_text()):
        assert said in text and re.findall(r"val loss, step (\d+)", text) == ["80"], text


def test_policy_of_a_finished_run_is_said(runs: dict[str, Path]) -> None:
    before = contents(runs["latest"])
    again = run(*ASKED, f"run_dir={runs['latest']}", warm=True)
    assert again.returncode == 0 and "its last evaluations are with evaluate.bn=latest" in again.stdout
    assert contents(runs["latest"]) == before and RunDir(runs["latest"]).marker()
    assert steps_in(runs["latest"] / "trajectory")
