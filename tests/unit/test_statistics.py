"""Modules with statistics of their own that are no BatchNorm: what asks their protocol does for them as for it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import rows, run
from scaled import Scale, scaled
from torch import nn
from training import training, updates

from lawa_exp.averaging.tensors import statistics_in, statistics_names
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.layers.ghost_norm import GroupedNorm1d, group_norms
from lawa_exp.axes.layers.statistics import TrainingStatistics
from lawa_exp.axes.model.outline import has_norms
from lawa_exp.evaluation.batchnorm import policy, recalibrate
from lawa_exp.seams.layers import METHODS, OfBatchNorm, statistics_kept, statistics_of
from lawa_exp.storage.safetensors import read_tensors
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError

NAMES = {f"blocks.{i}.scale.size" for i in (0, 1)}


def bytes_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_who_has_statistics() -> None:
    norm = nn.BatchNorm1d(3)
    without = nn.BatchNorm1d(3, track_running_stats=False)
    assert isinstance(statistics_of(norm), OfBatchNorm) and isinstance(statistics_of(nn.SyncBatchNorm(3)), OfBatchNorm)
    assert statistics_of(nn.LayerNorm(3)) is None and statistics_of(nn.InstanceNorm1d(3)) is None
    scale = Scale(3)
    assert statistics_of(scale) is scale
    group_norms(norm, 2)
    assert isinstance(norm, GroupedNorm1d) and statistics_of(norm) is norm
    own = statistics_of(without)
    assert own is not None and own.statistics() == {}  # samples of a pass meet in it, but it keeps nothing
    model = nn.Sequential(norm, without, nn.Sequential(scale))
    assert list(statistics_in(model)) == ["0", "2.0"]
    assert statistics_names(model) == {"0.running_mean", "0.running_var", "2.0.size"}


@pytest.mark.parametrize("missing", METHODS)
def test_a_part_of_the_protocol_is_none(missing: str) -> None:
    methods = {name: lambda self: None for name in METHODS if name != missing}
    assert statistics_of(type("Part", (nn.Module,), methods)()) is None
    assert statistics_of(type("Whole", (nn.Module,), {**methods, missing: lambda self: None})()) is not None


def grouped() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm1d(4))
    group_norms(model, 2)
    return model


@pytest.mark.parametrize(
    "make", [lambda: nn.BatchNorm1d(4), lambda: nn.BatchNorm1d(4, momentum=None), grouped, lambda: Scale(4)]
)
def test_frozen_statistics_stay_and_observed_ones_are_those_of_the_passes(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    model(torch.randn(6, 4))
    before, batches = bytes_of(model), [torch.randn(6, 4) + i for i in range(3)]
    tensors = dict(model.named_buffers())
    with statistics_kept(model):
        model(batches[0])
        assert any(not torch.equal(t, before[name]) for name, t in model.named_buffers())
    assert all(torch.equal(t, before[name]) and t is tensors[name] for name, t in model.named_buffers())
    (own,) = statistics_in(model).values()
    model.eval()
    momentum = getattr(model, "momentum", 0)
    own.reset()
    with own.observe():
        for batch in batches:
            model(batch)
    assert not model.training and getattr(model, "momentum", 0) == momentum
    if "size" in own.statistics():
        expected = {"size": torch.stack([b.abs().mean(0) for b in batches]).mean(0)}
    else:
        means = torch.stack([b.mean(0) for b in batches]).mean(0)
        expected = {"running_mean": means, "running_var": torch.stack([b.var(0) for b in batches]).mean(0)}
    for name, tensor in own.statistics().items():
        torch.testing.assert_close(tensor, expected[name])
        assert tensor is next(t for n, t in tensors.items() if n.endswith(name)), "changed in place"


def test_recalibration_is_the_mean_of_single_batches_of_weights_in_evaluation(tmp_path: Path) -> None:
    t = training(scaled(), tmp_path)
    updates(t, 3)
    assert t.bn == policy(t.config, t.model) == "recalibrate" and has_norms(t.config)
    before, sizes = bytes_of(t.model), {name: [] for name in NAMES}
    recalibrate(t.model, t.evaluation, t.config)
    after = bytes_of(t.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == NAMES | {name.replace("size", "passes") for name in NAMES} and t.model.training
    model = copy.deepcopy(t.model)
    for first, count in ((0, 32), (32, 32), (64, 32), (96, 4)):
        samples = in_epochs(first, count, t.data.sizes["train"], t.config.seed)
        inputs = torch.from_numpy(t.data.train_batch(t.config.seed, samples)[0])
        x = model.embedding(inputs)
        for i, block in enumerate(model.blocks):
            hidden = torch.tanh(block.hidden(x))
            size = hidden.flatten(0, -2).abs().mean(0)
            sizes[f"blocks.{i}.scale.size"].append(size)
            x = x + hidden / (size + 0.1)
    for name in NAMES:
        torch.testing.assert_close(after[name], torch.stack(sizes[name]).mean(0))


def test_blocks_that_are_computed_again_count_once(tmp_path: Path) -> None:
    """The same bytes, whatever memory they take."""
    trained = []
    for recomputed in (False, True):
        memory = ["trainer.micro_batch=2", f"trainer.checkpoint_activations={str(recomputed).lower()}"]
        t = training(scaled(*memory), tmp_path / str(recomputed))
        updates(t, 3)
        trained.append(t.live)
    assert trained[0]["blocks.0.scale.passes"] == 12
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


def test_rows_and_files_have_the_statistics_that_were_evaluated(tmp_path: Path) -> None:
    """As BatchNorm's: each policy has losses of its own, and files differ in the statistics alone."""
    found, files = {}, {}
    for bn in ("recalibrate", "average", "latest"):
        done = run(*scaled(), f"evaluate.bn={bn}", f"run_dir={tmp_path / bn}", warm=True)
        assert done.returncode == 0, done.stderr
        last = [r for r in rows(tmp_path / bn) if r["split"] == "val" and r["step"] == 20]
        assert {r["bn"] for r in last} == {bn}
        found[bn] = {r["weights"]: r["loss"] for r in last}
        files[bn] = read_tensors(tmp_path / bn / "averages/swa-e10-from5/step_00000020/model.safetensors")
    assert len({of["swa-e10-from5"] for of in found.values()}) == 3
    for bn in ("recalibrate", "average"):
        differing = {n for n, t in files["latest"].items() if not torch.equal(t, files[bn][n])}
        assert differing == NAMES
    plan = run(*scaled(), "plan=true", warm=True)
    assert "statistics of 8 samples" in plan.stdout, plan.stdout


def test_how_many_samples_share_them_is_in_the_id() -> None:
    from lawa_exp.launch.compose import compose, read
    from lawa_exp.runs.prepare import prepare

    def identity(micro: int) -> dict:
        ((values, overrides),), _ = compose(scaled(f"trainer.micro_batch={micro}"))
        return prepare(*read(values, overrides), torch.device("cpu"), Ranks()).identity

    assert identity(2)["batch"]["norm_samples"] == 2 and "norm_samples" not in identity(8)["batch"]


class Replacing(nn.Module):
    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x


def test_a_saved_buffer_that_is_replaced_is_refused() -> None:
    """Snapshots and states would hold the tensor that was there first."""
    for persistent in (True, False):
        model = nn.Sequential(Replacing(persistent))
        statistics = TrainingStatistics(model, None, Ranks())
        statistics.before_step(1)
        statistics.after_passes(1)
        model(torch.ones(3, 2))
        if persistent:
            with pytest.raises(UserError, match=r"^buffer 0\.mean: a step replaced it by another tensor; expected a b"):
                statistics.after_passes(1)
        else:
            statistics.after_passes(1)


def test_a_look_counts_no_batch(tmp_path: Path) -> None:
    """The objective's walk before the passes leaves the statistics as they were."""
    once, looked = (training(scaled(), tmp_path / name) for name in ("once", "looked"))

    class Looking(type(looked.objective)):
        def look(self, at, inputs, targets):
            self.model(inputs)

    looked.objective.__class__ = Looking
    for t in (once, looked):
        updates(replace(t), 2)
    names = [name for name in once.live if name.endswith(("size", "passes", "weight"))]
    assert len(names) > 6 and all(torch.equal(once.live[name], looked.live[name]) for name in names)
    assert np.all(once.live["blocks.0.scale.passes"].numpy() == 2)
