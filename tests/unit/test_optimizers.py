"""Each optimizer against its formula or the reference package, step by step, and through a stop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import rows, run, tiny
from safetensors.torch import load_file
from torch import nn

from lawa_exp.axes.model.cct.settings import CCTSettings
from lawa_exp.axes.model.cifar_resnet.settings import CifarResNetSettings
from lawa_exp.axes.optimizer.lamb import LAMB
from lawa_exp.axes.optimizer.lars import LARS
from lawa_exp.axes.optimizer.muon import Muon, hidden_matrices
from lawa_exp.axes.optimizer.schedule_free import ScheduleFree
from lawa_exp.axes.optimizer.sgd import SGD
from lawa_exp.system.errors import UserError

STEPS = 30


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    nn.init.zeros_(model[2].bias)  # a norm of 0 at first
    return model


def train(model: nn.Module, step, before=None) -> list[dict[str, np.ndarray]]:
    """The parameters after each of STEPS steps; `step(number)` updates them from their gradients."""
    torch.manual_seed(1)
    seen = []
    for number in range(1, STEPS + 1):
        x = torch.randn(8, 6, dtype=torch.float64)
        if before:
            before()
        ((model(x) - x[:, :3]) ** 2).mean().backward()
        step(number)
        model.zero_grad()
        seen.append({n: p.detach().numpy().copy() for n, p in model.named_parameters()})
    return seen


def rate_at(number: int) -> float:
    return 0.05 * number / STEPS + 0.01  # one that changes: it tells the forms of momentum apart


def with_settings(settings) -> list[dict[str, np.ndarray]]:
    model = small_model()
    optimizer = settings.build(model)

    def step(number):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(number) * group.get("rate_ratio", 1.0)
        optimizer.step()

    return train(model, step)


def by_formula(update) -> list[dict[str, np.ndarray]]:
    """update(w, g, state, rate, number) -> new w; state is a dict for each tensor."""
    model = small_model()
    states: dict[str, dict] = {n: {} for n, _ in model.named_parameters()}

    def step(number):
        for name, p in model.named_parameters():
            new = update(p.detach().numpy(), p.grad.numpy(), states[name], rate_at(number), number)
            p.data.copy_(torch.from_numpy(new))

    return train(model, step)


def assert_same(ours, theirs) -> None:
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-12, err_msg=f"{name} after step {number}")
    first, last = ours[0]["0.weight"], ours[-1]["0.weight"]
    assert np.abs(first - last).max() > 1e-3, "nothing was trained"


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decays", ["all", "matrices"])
def test_sgd(nesterov, decays):
    def update(w, g, state, rate, number):
        d = g + (0.1 * w if decays == "all" or w.ndim == 2 else 0)
        state["v"] = d if number == 1 else 0.9 * state["v"] + d
        return w - rate * (d + 0.9 * state["v"] if nesterov else state["v"])

    assert_same(with_settings(SGD(0.9, nesterov, 0.1, decays, 0)), by_formula(update))
    with pytest.raises(UserError, match="nesterov=True: expected a momentum above 0"):
        SGD(0.0, True, 0.1, decays, 0)


@pytest.mark.parametrize("form", ["scaled_velocity", "scaled_update"])
@pytest.mark.parametrize("excludes", ["vectors", "none"])
def test_lars(form, excludes):
    def update(w, g, state, rate, number):
        decay = 0.1 if w.ndim == 2 or excludes == "none" else 0.0
        norm, gradient = np.linalg.norm(w), np.linalg.norm(g)
        scale = 0.5 * norm / (gradient + decay * norm + 1e-8) if norm > 0 and gradient > 0 else 1.0
        if w.ndim < 2 and excludes == "vectors":
            scale = 1.0
        v = state.get("v", np.zeros_like(w))
        if form == "scaled_velocity":
            state["v"] = 0.9 * v + rate * scale * (g + decay * w)
            return w - state["v"]
        state["v"] = 0.9 * v + g + decay * w
        return w - rate * scale * state["v"]

    assert_same(with_settings(LARS(0.9, form, 0.5, 1e-8, 0.1, excludes, excludes, 0)), by_formula(update))


@pytest.mark.parametrize("decay_excludes", ["vectors", "none"])
@pytest.mark.parametrize("adaptation_excludes", ["vectors", "none"])
def test_lamb(decay_excludes, adaptation_excludes):
    def update(w, g, state, rate, number):
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
        state["v"] = 0.99 * state.get("v", 0) + 0.01 * g**2
        u = state["m"] / (1 - 0.9**number) / (np.sqrt(state["v"] / (1 - 0.99**number)) + 1e-6)
        u = u + (0.1 if w.ndim == 2 or decay_excludes == "none" else 0.0) * w
        norms = np.linalg.norm(w), np.linalg.norm(u)
        ratio = norms[0] / norms[1] if min(norms) > 0 else 1.0
        if w.ndim < 2 and adaptation_excludes == "vectors":
            ratio = 1.0
        return w - rate * ratio * u

    settings = LAMB(0.9, 0.99, 1e-6, 0.1, decay_excludes, adaptation_excludes, 0)
    assert_same(with_settings(settings), by_formula(update))


def test_schedule_free_is_the_packages():
    schedulefree = pytest.importorskip("schedulefree")
    ours = with_settings(ScheduleFree(0.9, 0.99, 1e-8, 0.1, 2.0, 0.0, 0))
    model = small_model()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = schedulefree.AdamWScheduleFree(groups, lr=0.0, betas=(0.9, 0.99))
    optimizer.train()

    def step(number):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(number)
        optimizer.step()

    assert_same(ours, train(model, step))
    # What is evaluated: its eval() puts the same weights in place.
    model = small_model()
    settings = ScheduleFree(0.9, 0.99, 1e-8, 0.1, 2.0, 0.0, 0)
    mine = settings.build(model)
    for group in mine.param_groups:
        group["lr"] = 0.05
    train(model, lambda number: mine.step())
    live = {n: p.detach() for n, p in model.named_parameters()}
    y, x = {n: t.clone() for n, t in live.items()}, settings.evaluated(mine, live)
    assert all(torch.equal(y[n], live[n]) for n in live)
    assert SGD(0.9, False, 0.0, "all", 0).evaluated(mine, live) is live  # of any other: no copy
    mine.eval()
    assert all(torch.equal(x[n], live[n]) and not torch.equal(x[n], y[n]) for n in live)


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    settings = Muon(0.95, True, 5, "match_rms_adamw", 0.1, 0.5, 0.9, 0.95, 1e-8, 0)

    def build() -> nn.Module:
        torch.manual_seed(0)
        parts = {"wte": nn.Embedding(7, 6), "hidden": nn.Linear(6, 5), "head": nn.Linear(5, 7)}
        return nn.ModuleDict(parts)

    def passes(model, step):
        torch.manual_seed(1)
        for number in range(1, 11):
            tokens = torch.randint(0, 7, (8,))
            logits = model["head"](torch.tanh(model["hidden"](model["wte"](tokens))))
            nn.functional.cross_entropy(logits, (tokens + 1) % 7).backward()
            step(rate_at(number))
            model.zero_grad()
        return {n: p.detach().clone() for n, p in model.named_parameters()}

    ours = build()
    assert [id(p) for p in hidden_matrices(ours)] == [id(ours["hidden"].weight)]
    optimizer = settings.build(ours)

    def step(rate):
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("rate_ratio", 1.0)
        optimizer.step()

    mine = passes(ours, step)
    theirs = build()
    muon = torch.optim.Muon([theirs["hidden"].weight], lr=0.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    matrices = [theirs["wte"].weight, theirs["head"].weight]
    vectors = [theirs["hidden"].bias, theirs["head"].bias]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )

    def other_step(rate):
        for group in muon.param_groups:
            group["lr"] = rate
        for group in adamw.param_groups:
            group["lr"] = 0.5 * rate
        muon.step()
        adamw.step()

    for name, value in passes(theirs, other_step).items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-6)


def test_muon_takes_the_blocks_of_a_cct_and_refuses_a_resnet():
    cct = CCTSettings("cct_2", 1, 8, 10, 2, 2, 16, 1.0, 3, 2, "learned", 0.0, 0.1, 0.1).build()
    names = {id(p): n.removeprefix("classifier.") for n, p in cct.named_parameters()}
    of_block = ("self_attn.qkv", "self_attn.proj", "linear1", "linear2")
    expected = ["attention_pool.weight", *(f"blocks.{i}.{part}.weight" for i in (0, 1) for part in of_block)]
    assert [names[id(p)] for p in hidden_matrices(cct)] == expected
    resnet = CifarResNetSettings("resnet8", 1, 8, 10, 8).build()
    with pytest.raises(UserError, match=r"optimizer=muon: the model has no two-dimensional weights but"):
        Muon(0.95, True, 5, "match_rms_adamw", 0.1, 0.5, 0.9, 0.95, 1e-8, 0).build(resnet)


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "schedule_free", "muon"])
def test_a_run_in_two_parts_is_one_in_one(name: str, tmp_path: Path) -> None:
    if name == "schedule_free":
        pytest.importorskip("schedulefree")
    peak = {"sgd": "0.1", "lars": "1.0", "lamb": "0.03", "schedule_free": "0.01"}.get(name, "0.003")
    asked = [o for o in tiny(f"optimizer={name}", f"lr.peak={peak}") if not o.startswith("steps=")]
    asked += ["averagers.swa.start=20", "trajectory.every=5"]
    once, twice = tmp_path / "once", tmp_path / "twice"
    done = run(*asked, "steps=60", f"run_dir={once}", warm=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(*asked, "steps=30", f"run_dir={twice}", warm=True).returncode == 0
    again = run(*asked, "steps=60", f"run_dir={twice}", warm=True)
    assert "continuing from step 30" in again.stdout, again.stdout + again.stderr
    for part in ("trajectory", "resume"):
        for path in sorted((once / part).rglob("*.safetensors")):
            assert path.read_bytes() == (twice / path.relative_to(once)).read_bytes(), path
    live = [r["loss"] for r in rows(once) if r["weights"] == "live" and r["split"] == "val"]
    assert live[-1] < live[0] - 0.5, live


def test_lamb_begins_anew_once_its_state_is_cleared():
    """As feedback.optimizer=reset does."""
    settings = LAMB(0.9, 0.99, 1e-6, 0.1, "vectors", "none", 0)
    model, twin = small_model(), small_model()
    optimizer, fresh = settings.build(model), settings.build(twin)
    for group in (*optimizer.param_groups, *fresh.param_groups):
        group["lr"] = 0.05
    train(model, lambda number: optimizer.step())
    optimizer.state.clear()
    twin.load_state_dict(model.state_dict())
    assert_same(train(model, lambda number: optimizer.step()), train(twin, lambda number: fresh.step()))


@pytest.mark.parametrize("name", ["lamb", "schedule_free", "muon"])
def test_a_divergent_update_without_a_fused_kernel_is_not_made(name: str, tmp_path: Path) -> None:
    asked = [*tiny(f"optimizer={name}", "lr.warmup_steps=60", "optimizer.clip_norm=0"), "lr.peak=1e9"]
    done = run(*asked, f"run_dir={tmp_path}", warm=True)
    assert done.returncode == 3, done.stdout + done.stderr
    bad = rows(tmp_path)[-1]
    assert bad["split"] == "train" and bad["nonfinite"]
    found = list((tmp_path / "averages").rglob("*.safetensors"))
    assert found and {path.parent.name for path in found} == {f"step_{bad['step'] - 1:08}"}
    for path in found:
        assert all(torch.isfinite(t).all() for t in load_file(path).values()), path
