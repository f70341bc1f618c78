"""Averages that go back into training: against the papers' recursions written out, and through kills."""

import copy
import json
import signal
from pathlib import Path

import pytest
import torch
from helpers import UPDATE, Strike, assert_same_run, rows, run, states, tiny
from torch import nn

from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.axes.feedback.feedback import Feedback
from lawa_exp.axes.feedback.lawa_restart import LawaRestartSettings
from lawa_exp.axes.feedback.lookahead import LookaheadSettings
from lawa_exp.axes.feedback.switch_ema import SwitchEmaSettings
from lawa_exp.launch.compose import main
from lawa_exp.system import readback

STEPS = 24


def trained(settings, by_hand=None) -> dict[str, torch.Tensor]:
    """A small network after STEPS of Adam, with a Feedback or with `by_hand(step, parameters, optimizer)`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    feedback = Feedback(settings, averaged_names(model), optimizer) if settings else None
    if feedback:
        feedback.begin(live_tensors(model))
    if by_hand:
        by_hand(0, list(model.parameters()), optimizer)
    for step in range(1, STEPS + 1):
        x = torch.randn(16, 6)
        nn.functional.mse_loss(model(x), x.sum(1, keepdim=True)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if feedback:
            feedback.after_update(step, live_tensors(model))
        if by_hand:
            with torch.no_grad():
                by_hand(step, list(model.parameters()), optimizer)
    return copy.deepcopy(model.state_dict())


def assert_close(ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name in ours:
        torch.testing.assert_close(ours[name], other[name], rtol=1e-5, atol=1e-6)
    plain = trained(None)
    assert not torch.allclose(ours["0.weight"], plain["0.weight"], atol=1e-3), "training was not changed"
    assert not torch.equal(ours["1.running_mean"], plain["1.running_mean"])  # a consequence: buffers are not copied


def test_lookahead():
    slow: list[torch.Tensor] = []

    def by_hand(step, parameters, optimizer):
        if step == 0:
            slow.extend(p.detach().clone() for p in parameters)
        elif step % 5 == 0:
            for s, p in zip(slow, parameters, strict=True):
                s += 0.8 * (p - s)
                p.copy_(s)

    assert_close(trained(LookaheadSettings(5, 0.8)), trained(None, by_hand))


def test_switch_ema():
    ema: list[torch.Tensor] = []

    def by_hand(step, parameters, optimizer):
        if step == 3:
            ema.extend(p.detach().clone() for p in parameters)
        for e, p in zip(ema if step > 3 else [], parameters, strict=step > 3):
            e.mul_(0.7).add_(0.3 * p)
            if step % 6 == 0:
                p.copy_(e)

    assert_close(trained(SwitchEmaSettings(0.7, 6, 3)), trained(None, by_hand))


@pytest.mark.parametrize("optimizer_state", ["keep", "reset"])
def test_lawa_restart(optimizer_state):
    held: dict[int, list[torch.Tensor]] = {}

    def by_hand(step, parameters, optimizer):
        if step and step % 4 == 0:
            held[step] = [p.detach().clone() for p in parameters]
        if step in (8, 16, 24) and step >= 12:  # at 8 only two snapshots exist
            for i, p in enumerate(parameters):
                p.copy_((held[step - 8][i] + held[step - 4][i] + held[step][i]) / 3)
            if optimizer_state == "reset":
                optimizer.state.clear()

    got = trained(LawaRestartSettings(3, 4, 8, 0, optimizer_state))
    assert_close(got, trained(None, by_hand))


EVERYTHING = "avg=[lawa,wma,ema,power_ema,bema,swa]"


@pytest.mark.parametrize(
    "feedback",
    [
        ["feedback=none", "averagers.ema.decay=[half_life:4%,half_life:9,lawa:3]", "averagers.ema.warmup=true"],
        ["feedback=lookahead", "feedback.every=7", "trajectory.window=disk"],
        ["feedback=switch_ema", "feedback.every=25"],
        ["feedback=lawa_restart", "feedback.every=20", "feedback.optimizer=reset"],
    ],
    ids=lambda f: f[0],
)
def test_killed_run_goes_on_to_the_same_bytes(feedback: list[str], tmp_path: Path) -> None:
    """With every averager attached, too."""
    given = {o.split("=")[0] for o in feedback}
    asked = [EVERYTHING, *(o for o in tiny("averagers.bema.every=1") if o.split("=")[0] not in given), *feedback]
    folder, other = tmp_path / "run", tmp_path / "undisturbed"
    done = run(*asked, f"run_dir={other}", warm=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for n, newest in ((19, 15), (22, 30)):  # before step 19; step 37, between two times that the average is copied
        died = run(*asked, f"run_dir={folder}", strike=Strike(UPDATE, n=n))
        assert died.returncode == -signal.SIGKILL and states(folder)[-1] == newest, died.stdout + died.stderr
    done = run(*asked, f"run_dir={folder}", warm=True)
    assert done.returncode == 0 and "warning" not in done.stdout, done.stdout + done.stderr
    assert_same_run(folder, other)
    at_end = {r["weights"]: r["loss"] for r in rows(folder) if r["step"] == 60 and r["split"] == "val"}
    assert len(set(at_end.values())) == len(at_end) >= 8, at_end


def test_a_damaged_snapshot_of_a_window_on_the_disk_is_named_and_its_state_passed_over(tmp_path: Path) -> None:
    asked = ["avg=lawa", *(o for o in tiny("trajectory.window=disk") if not o.startswith(("averagers", "steps")))]
    folder, other = tmp_path / "run", tmp_path / "undisturbed"
    assert run(*asked, "steps=60", f"run_dir={other}", warm=True).returncode == 0
    assert run(*asked, "steps=40", f"run_dir={folder}", warm=True).returncode == 0
    damaged = folder / "trajectory/step_00000040/model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    done = run(*asked, "steps=60", f"run_dir={folder}", warm=True)
    assert done.returncode == 0 and f"{damaged} does not have the checksum" in done.stdout, done.stdout + done.stderr
    assert "continuing from step 30" in done.stdout
    for name in ("averages/lawa-k3-s10/step_00000060", "trajectory/step_00000040", "resume/step_00000060"):
        for path in (other / name).glob("*.safetensors"):
            assert path.read_bytes() == (folder / name / path.name).read_bytes()


@pytest.mark.parametrize("window", ["memory", "disk"])
def test_divergence_that_is_read_late(window: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where numbers come two steps later: what is kept has seen nothing beyond the last finite step."""
    asked = [*tiny(f"trajectory.window={window}", "lr.peak=120", "lr.warmup_steps=60", "avg=lawa")]
    asked += ["optimizer.clip_norm=0"]
    asked = [o for o in asked if not o.startswith("averagers")]
    ended = {}
    for lag in (0, 2):
        monkeypatch.setitem(readback.LAG, "cpu", lag)
        folder = tmp_path / str(lag)
        assert main([*asked, f"run_dir={folder}"]) == 3
        step = json.loads((folder / "DIVERGED").read_text())["step"]
        snapshots = {p.name for p in (folder / "trajectory").iterdir()}
        averages = {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "averages").rglob("*.safetensors")}
        ended[lag] = (step, snapshots, averages)
        assert all(int(name[5:]) <= step for name in snapshots)
    assert ended[0] == ended[2] and 15 < ended[0][0] < 60, ended[0][:2]
