"""Our averages against other people's implementations, on the snapshots of a real run. Where they differ, who is right.

timm, ema-pytorch and trl are optional; fairseq's script is read from a checkout beside this one (or at FAIRSEQ):
git clone https://github.com/facebookresearch/fairseq ../fairseq
"""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers import TINY, run
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lawa_exp.averaging import BemaSettings, EmaSettings, LawaSettings, PowerEmaSettings, SwaSettings, build_averager
from lawa_exp.averaging.arithmetic import weighted_mean
from lawa_exp.averaging.power import exponent, rebuilding_weights
from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.averaging.window import Window
from lawa_exp.runs.choices import config_from
from lawa_exp.storage.safetensors import read_tensors

FAIRSEQ = Path(os.environ.get("FAIRSEQ", "../fairseq")) / "scripts" / "average_checkpoints.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with twelve snapshots."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run(*TINY, f"run_dir={folder}", warm=True).returncode == 0
    return folder


def snapshots(folder: Path) -> list[dict[str, torch.Tensor]]:
    found = [read_tensors(p / "model.safetensors") for p in sorted((folder / "trajectory").glob("step_*"))]
    assert len(found) == 12 and not torch.equal(*(s["transformer.wte.weight"] for s in found[-2:]))
    return found


def model_of(folder: Path) -> nn.Module:
    return config_from(yaml.safe_load((folder / "config.yaml").read_text())).model.build()


def put(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in live_tensors(model).items():
            tensor.copy_(tensors[name])


def ours(settings, folder: Path) -> dict[str, torch.Tensor]:
    """The average of the snapshots as observations 1, 2, ... 12."""
    averager = build_averager(settings, averaged_names(model_of(folder)), Window())
    for i, tensors in enumerate(snapshots(folder), 1):
        averager.update(i, tensors)
    return averager.average()


def furthest(mine: dict[str, torch.Tensor], other: nn.Module) -> float:
    """The largest difference to the parameters of `other`, as a share of the largest weight of its tensor."""
    names = dict(other.named_parameters())
    assert set(names) == set(mine)
    return max(((mine[n] - p.detach()).abs().max() / mine[n].abs().max()).item() for n, p in names.items())


def moved(mine: dict[str, torch.Tensor], folder: Path) -> float:
    """How far the average is from the last snapshot, in the same units: what a difference has to be small against."""
    model = model_of(folder)
    put(model, snapshots(folder)[-1])
    return furthest(mine, model)


def test_numpy_and_torch_means(trained: Path) -> None:
    taken = snapshots(trained)
    for settings, chosen in ((LawaSettings(5, 1, 0), taken[-5:]), (SwaSettings(1, 4), taken[3:])):
        mine = ours(settings, trained)
        for name in mine:
            expected = np.mean([t[name].double().numpy() for t in chosen], axis=0, dtype=np.float64)
            np.testing.assert_allclose(mine[name].numpy(), expected, rtol=2**-23, atol=0)  # one rounding to float32
        model = model_of(trained)
        theirs = AveragedModel(model)
        for tensors in chosen:
            put(model, tensors)
            theirs.update_parameters(model)
        assert furthest(mine, theirs.module) < 2e-6 < moved(mine, trained)  # a running mean in float32


def test_fairseq_script(trained: Path, tmp_path: Path) -> None:
    """Its sums are float32 (ours float64), so it differs by rounding. Of an integer it takes the floored mean."""
    if not FAIRSEQ.is_file():
        pytest.skip(f"no checkout of fairseq: {FAIRSEQ}")
    source = FAIRSEQ.read_text()
    source, count = re.subn(r"from fairseq\.file_io import PathManager", "PathManager = __import__('io')", source)
    assert count == 1  # its PathManager.open is Python's open, for local files
    names = {"__name__": "average_checkpoints"}
    exec(compile(source, str(FAIRSEQ), "exec"), names)
    paths = []
    for i, tensors in enumerate(snapshots(trained)[-5:]):
        paths.append(tmp_path / f"checkpoint{i}.pt")
        torch.save({"model": {**tensors, "updates": torch.tensor(10 + i)}}, paths[-1])
    theirs = names["average_checkpoints"]([str(p) for p in paths])["model"]
    mine = ours(LawaSettings(5, 1, 0), trained)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-6, atol=1e-7)
    exact = {n: sum(t[n].double() for t in snapshots(trained)[-5:]) / 5 for n in mine}
    error = {n: (mine[n] - exact[n]).abs().sum() for n in mine}, {n: (theirs[n] - exact[n]).abs().sum() for n in mine}
    assert sum(error[0].values()) < sum(error[1].values()), "ours is the nearer to the exact mean"
    assert theirs["updates"].item() == 12  # a counter of no step at all; ours is the latest, 14


@pytest.mark.parametrize("warmup", [False, True])
def test_timm(trained: Path, warmup: bool) -> None:
    timm = pytest.importorskip("timm.utils")
    model = model_of(trained)
    theirs = timm.ModelEmaV3(model, decay=0.8, use_warmup=warmup, exclude_buffers=True)  # False: see the next test
    for i, tensors in enumerate(snapshots(trained), 1):
        put(model, tensors)
        theirs.update(model, step=i)  # at step 1 its decay is 0: it starts as the first observed weights, as ours does
    mine = ours(EmaSettings(0.8, 1, 0, warmup), trained)
    assert furthest(mine, theirs.module) < 2e-6 < moved(mine, trained)
    assert furthest(ours(EmaSettings(0.8, 1, 0, not warmup), trained), theirs.module) > 1e-3


def test_timm_takes_a_tied_weight_twice(trained: Path) -> None:
    """Unless it excludes buffers it goes over state_dict(), where tied weights stand under both names: the EMA of those
    moves twice as fast, with decay 0.8^2. Ours averages a tied weight once."""
    timm = pytest.importorskip("timm.utils")
    model = model_of(trained)
    theirs = timm.ModelEmaV3(model, decay=0.8)
    for i, tensors in enumerate(snapshots(trained), 1):
        put(model, tensors)
        theirs.update(model, step=i)
    mine, tied = ours(EmaSettings(0.8, 1, 0, False), trained), "transformer.wte.weight"
    found = dict(theirs.module.named_parameters())
    for name in mine:
        assert torch.allclose(mine[name], found[name], rtol=1e-5, atol=2e-6) == (name != tied)
    twice = ours(EmaSettings(0.8**2, 1, 0, False), trained)[tied]
    torch.testing.assert_close(found[tied].detach(), twice, rtol=1e-5, atol=2e-6)


def test_timm_averages_batchnorm_statistics_and_ours_does_not() -> None:
    """An average of running variances is the variance of no batch: ours are the latest, and evaluation says more."""
    timm = pytest.importorskip("timm.utils")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    theirs = timm.ModelEmaV3(model, decay=0.5)
    mine = build_averager(EmaSettings(0.5, 1, 0, False), averaged_names(model), Window())
    for i in range(1, 6):
        model(torch.randn(8, 4) * i)
        theirs.update(model, step=i)
        mine.update(i, live_tensors(model))
    latest, other = model[1].running_var, theirs.module[1].running_var
    assert torch.equal(mine.average()["1.running_var"], latest) and not torch.allclose(other, latest, rtol=0.1)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_pytorch(trained: Path, warmup: bool) -> None:
    """Its decay is always warmed up (inv_gamma 1, power 2/3 here); with a huge power it is at its bound at once."""
    ema_pytorch = pytest.importorskip("ema_pytorch")
    model = model_of(trained)
    power = 2 / 3 if warmup else 60
    theirs = ema_pytorch.EMA(model, beta=0.8, update_every=1, update_after_step=0, inv_gamma=1.0, power=power)
    for tensors in snapshots(trained):
        put(model, tensors)
        theirs.update()
    mine = ours(EmaSettings(0.8, 1, 0, warmup), trained)
    assert furthest(mine, theirs.ema_model) < 2e-6 < moved(mine, trained)


def test_power_ema_of_ema_pytorch_is_one_step_late(trained: Path) -> None:
    """EDM2 (equation 127, and its code) has 1 - 1/t at step t; ema-pytorch takes 1 - 1/(t+1). Ours is the paper's."""
    ema_pytorch = pytest.importorskip("ema_pytorch.post_hoc_ema")
    model, sigma_rel = model_of(trained), 0.15
    theirs = ema_pytorch.KarrasEMA(model, sigma_rel=sigma_rel, update_every=1)
    assert theirs.gamma == pytest.approx(exponent(sigma_rel), rel=1e-9)
    late, first = None, None
    for t, tensors in enumerate(snapshots(trained), 1):
        put(model, tensors)
        theirs.update()
        d = (1 - 1 / (t + 1)) ** (theirs.gamma + 1)
        late = {n: (d * late[n] + (1 - d) * v) if late else v.clone() for n, v in tensors.items()}
        d = (1 - 1 / t) ** (theirs.gamma + 1)
        first = {n: (d * first[n] + (1 - d) * v) if first else v.clone() for n, v in tensors.items()}
    mine = ours(PowerEmaSettings(sigma_rel, 1), trained)
    assert furthest(late, theirs.ema_model) < 2e-6, "what ema-pytorch computes"
    assert max((mine[n] - first[n]).abs().max().item() for n in mine) < 1e-5, "what the paper says"
    assert furthest(mine, theirs.ema_model) > 1e-3


def test_post_hoc_ema_of_ema_pytorch(trained: Path, tmp_path: Path) -> None:
    """From the same saved averages the same width, but for a scale: its solution's weights need not sum to 1 (twelve
    steps: 1.011), so its tensors are too large by that. Ours are divided by their sum, as in EDM2's own code."""
    ema_pytorch = pytest.importorskip("ema_pytorch")
    model = model_of(trained)
    tracked, wanted, saved_every = (0.05, 0.1), 0.07, 3
    theirs = ema_pytorch.PostHocEMA(
        model,
        sigma_rels=tracked,
        update_every=1,
        checkpoint_every_num_steps=saved_every,
        checkpoint_folder=str(tmp_path),
        checkpoint_dtype=torch.float32,
    )
    for tensors in snapshots(trained):
        put(model, tensors)
        theirs.update()
    synthesized = dict(theirs.synthesize_ema_model(sigma_rel=wanted).ema_model.named_parameters())
    profiles = [(step, sigma) for step in range(saved_every, 13, saved_every) for sigma in tracked]
    files = [tmp_path / f"{tracked.index(sigma)}.{step}.pt" for step, sigma in profiles]
    saved = [torch.load(f, weights_only=True) for f in files]
    averages = [{n.removeprefix("ema_model."): t for n, t in s.items() if n.startswith("ema_model.")} for s in saved]
    mine = weighted_mean(averages, rebuilding_weights(profiles, (12, wanted)), frozenset(synthesized))
    scales = {n: float((t.detach() * mine[n]).sum() / mine[n].square().sum()) for n, t in synthesized.items()}
    scale = scales["transformer.wte.weight"]
    assert 1e-3 < abs(scale - 1) < 0.02
    for name, tensor in synthesized.items():
        torch.testing.assert_close(tensor.detach(), scale * mine[name], rtol=1e-5, atol=1e-5)
    off = max(float((averages[-1][n] - mine[n]).abs().max()) for n in mine)
    assert off > 1e-3, "a width that is no other than a tracked one"


def test_bema_of_trl(trained: Path) -> None:
    """Its theta_0 are the weights at `update_after`; ours the first that are observed."""
    trl = pytest.importorskip("trl")
    model = model_of(trained)
    theirs = trl.BEMACallback(update_freq=1, ema_power=0.5, bias_power=0.2, lag=10, update_after=1)
    running = model_of(trained)
    # What its on_train_begin does for a Hugging Face model.
    theirs.running_model = running
    theirs.thetat_params = list(model.parameters())
    theirs.theta0_params = [p.detach().clone() for p in model.parameters()]
    theirs.ema_params = [p.detach().clone() for p in model.parameters()]
    for i, tensors in enumerate(snapshots(trained), 1):
        put(model, tensors)
        theirs.on_step_end(None, SimpleNamespace(global_step=i), None, model)
    mine = ours(BemaSettings(1, 0, 0.5, 0.2, 10), trained)
    assert furthest(mine, running) < 2e-6 < moved(mine, trained)


def test_ema_of_torch(trained: Path) -> None:
    model = model_of(trained)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for tensors in snapshots(trained):
        put(model, tensors)
        theirs.update_parameters(model)
    mine = ours(EmaSettings(0.8, 1, 0, False), trained)
    assert furthest(mine, theirs.module) < 2e-6 < moved(mine, trained)
