"""Averagers in somebody else's loop, through the public classes."""

import copy
import dataclasses
import gc
import inspect
import io
import subprocess
import sys
import weakref

import pytest
import torch
import yaml
from safetensors.torch import load_model, save_file
from torch import nn

from lawa_exp.averaging import (
    AVERAGERS,
    Bema,
    Ema,
    Lawa,
    LawaSettings,
    ModelAverager,
    PowerEma,
    Swa,
    Window,
    Wma,
    build_averager,
)
from lawa_exp.averaging.flags import SWA_START
from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.config.rules import default_of, setting_names
from lawa_exp.launch.compose import CONF
from lawa_exp.launch.defaults import TAG, read_defaults

MAKERS = {
    "lawa": lambda model, window=None: Lawa(model, k=3, spacing=2, window=window),
    "wma": lambda model, window=None: Wma(model, k=2, spacing=3, start=4, window=window),
    "ema": lambda model: Ema(model, decay=0.9),
    "ema_warmup": lambda model: Ema(model, decay="half_life:10%", every=2, warmup=True),
    "power_ema": lambda model: PowerEma(model, sigma_rel=0.1),
    "swa": lambda model: Swa(model, every=2, start=3),
    "bema": lambda model: Bema(model, every=1),
}


class Net(nn.Module):
    """Tied weights, batch norm's buffers, a parameter that is no floating-point number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.codes = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens)))


class Loop:
    """A training loop that can go on from where it is; a step's batch depends on the step alone."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Net()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.05)
        self.step = 0

    def train(self, until: int, *averagers) -> None:
        self.model.train()
        while self.step < until:
            tokens = torch.randint(0, 11, (16,), generator=torch.Generator().manual_seed(self.step))
            nn.functional.cross_entropy(self.model(tokens), (tokens * 3 + 1) % 11).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            for averager in averagers:
                averager.update(self.step)


def saved_and_read(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(a, b) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def copies(model) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in live_tensors(model).items()}


IMPORTS = """
import sys

def others():
    return {name.partition(".")[0] for name in sys.modules} - {*sys.stdlib_module_names, "__main__", "lawa_exp"}

before = others()
from lawa_exp.averaging import AVERAGERS, Bema, Ema, Lawa, PowerEma, Swa, Wma, flags, needs
assert all(cls().coefficients([20, 30]) for cls in AVERAGERS.values() if cls.kind not in ("power_ema", "custom"))
assert others() == before, others() - before

import numpy
import torch.distributed
from torch import nn

before = others()
model = nn.Linear(2, 2)
for averager in (Lawa(model, k=1, spacing=1), Wma(model), Ema(model), PowerEma(model), Swa(model), Bema(model)):
    averager.update(1)
    averager.load_state_dict(averager.state_dict())
    if averager.defined:
        averager.full_average()
assert others() == before, others() - before
"""


def test_what_is_imported():
    """For the settings nothing third-party; for the averages nothing but torch and numpy, and what these import."""
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_averages_are_those_of_the_trainers_averagers_and_survive_any_restart(make):
    loop = Loop()
    undisturbed, restarted = make(loop.model), make(loop.model)
    reference = build_averager(undisturbed.settings, averaged_names(loop.model), Window())
    for step in range(1, 16):
        loop.train(step, undisturbed, restarted)
        reference.update(step, live_tensors(loop.model))
        state = restarted.state_dict()
        restarted = make(loop.model)
        restarted.load_state_dict(saved_and_read(state))
        assert undisturbed.defined == restarted.defined == (reference.average() is not None)
        if undisturbed.defined:
            assert_same(undisturbed.average(), reference.average())
            assert_same(undisturbed.average(), restarted.average())
    average = undisturbed.average()
    assert not torch.equal(average["embed.weight"], loop.model.embed.weight)
    assert "head.weight" not in average and torch.equal(average["codes"], torch.arange(4))


def test_before_an_average_is_defined():
    loop = Loop()
    lawa, ema = Lawa(loop.model, k=3, spacing=2), Ema(loop.model)
    for averager in (lawa, ema):
        averager.update(0)  # the initial weights are never observed
        assert not averager.defined and averager.average() is None
        with pytest.raises(RuntimeError, match="is not defined yet"):
            averager.full_average()
    with pytest.raises(RuntimeError, match=r"ema-d0.99-e1 is not defined yet: nothing was observed"), ema.applied():
        pass
    loop.train(5, lawa)
    before = copies(loop.model)
    message = r"lawa-k3-s2 is not defined yet: it needs 3 snapshots and has those of steps \[2, 4\]"
    with pytest.raises(RuntimeError, match=message), lawa.applied():
        pass
    assert_same(before, live_tensors(loop.model))


def test_the_model_computes_with_the_average_inside_applied_and_nowhere_else():
    loop = Loop()
    lawa, ema = Lawa(loop.model, k=3, spacing=2), Ema(loop.model, decay=0.5)
    loop.train(9, lawa, ema)
    tokens = torch.arange(11)
    loop.model.eval()
    live, before = loop.model(tokens), copies(loop.model)
    by_hand = Net().eval()
    by_hand.load_state_dict(lawa.average(), strict=False)  # without the second name of the tied weight
    with lawa.applied():
        assert torch.equal(loop.model(tokens), by_hand(tokens)) and not torch.equal(loop.model(tokens), live)
        assert loop.model(tokens).requires_grad  # forces and the like can be computed
        for refused in (lambda: ema.update(10), lambda: ema.state_dict(), lambda: ema.applied().__enter__()):
            with pytest.raises(RuntimeError, match=r"ema-d0\.5-e1: an average is in place"):
                refused()
    assert_same(before, live_tensors(loop.model))
    other = copy.deepcopy(loop.model)
    with ema.applied(other):
        assert torch.equal(loop.model(tokens), live) and not torch.equal(other(tokens), live)
    assert torch.equal(other(tokens), live)
    with pytest.raises(KeyboardInterrupt), lawa.applied():
        raise KeyboardInterrupt
    assert_same(before, live_tensors(loop.model))
    loop.train(10, lawa, ema)


def test_the_model_may_be_cast_or_given_other_tensors_later():
    loop = Loop()
    ema, lawa = Ema(loop.model, decay=0.5), Lawa(loop.model, k=2, spacing=1)
    loop.model.load_state_dict(copy.deepcopy(loop.model.state_dict()), assign=True)
    loop.model.head.weight = loop.model.embed.weight
    loop.model.to(torch.float64)
    observed = []
    for step in range(1, 4):
        with torch.no_grad():
            loop.model.embed.weight += step
        observed.append(loop.model.embed.weight.detach().clone())
        ema.update(step)
        lawa.update(step)
    assert torch.equal(lawa.average()["embed.weight"], (observed[1] + observed[2]) / 2)
    torch.testing.assert_close(ema.average()["embed.weight"], observed[0] / 4 + observed[1] / 4 + observed[2] / 2)
    loop.model.to(torch.bfloat16)
    ema.update(4)
    lawa.update(4)
    with lawa.applied():
        assert loop.model.embed.weight.dtype == torch.bfloat16
        assert torch.equal(loop.model.embed.weight, lawa.average()["embed.weight"])


def test_several_share_a_window():
    loop = Loop()
    window = Window()
    three, two = Lawa(loop.model, k=3, spacing=4, window=window), Wma(loop.model, k=2, spacing=2, window=window)
    alone = Lawa(loop.model, k=3, spacing=4)
    loop.train(13, three, two, alone)
    assert sorted(window.snapshots) == [4, 8, 10, 12] and window.snapshots[12] is not alone.window.snapshots[12]
    assert_same(three.average(), alone.average())
    fresh = Window()
    again = [Lawa(loop.model, k=3, spacing=4, window=fresh), Wma(loop.model, k=2, spacing=2, window=fresh)]
    for new, old in zip(again, (three, two), strict=True):
        new.load_state_dict(saved_and_read(old.state_dict()))
    assert sorted(fresh.snapshots) == [4, 8, 10, 12]
    loop.train(21, three, two, *again)
    for new, old in zip(again, (three, two), strict=True):
        assert_same(new.average(), old.average())


def test_a_state_from_before_makes_what_came_after_forgotten():
    """Back to step 7 in the same process, then on with other weights at the same steps."""
    undisturbed, loop = Loop(), Loop()
    averagers, expected = ([make(x.model) for make in MAKERS.values()] for x in (loop, undisturbed))
    loop.train(7, *averagers)
    undisturbed.train(7, *expected)
    states = [saved_and_read(a.state_dict()) for a in averagers]
    weights, optimizer = copies(loop.model), copy.deepcopy(loop.optimizer.state_dict())
    for group in loop.optimizer.param_groups:
        group["lr"] = 1.0
    loop.train(13, *averagers)
    loop.model.load_state_dict(weights, strict=False)
    loop.optimizer.load_state_dict(optimizer)
    loop.step = 7
    for averager, state in zip(averagers, states, strict=True):
        with pytest.raises(ValueError, match="steps must increase"):
            averager.update(6)
        averager.load_state_dict(state)
    loop.train(13, *averagers)
    undisturbed.train(13, *expected)
    for mine, other in zip(averagers, expected, strict=True):
        assert_same(mine.average(), other.average())


def test_a_state_that_does_not_fit_is_named():
    loop = Loop()
    lawa, ema = Lawa(loop.model, k=3, spacing=2), Ema(loop.model)
    loop.train(6, lawa, ema)
    with pytest.raises(ValueError, match="lawa-k4-s2: the state was saved with k=3, here it is 4"):
        Lawa(loop.model, k=4, spacing=2).load_state_dict(lawa.state_dict())
    wide = Net()
    wide.norm = nn.BatchNorm1d(7)
    for averager, other in ((lawa, Lawa(wide, k=3, spacing=2)), (ema, Ema(wide))):
        with pytest.raises(ValueError, match=r"norm.bias is \[6\] in the state and \[7\] in the model"):
            other.load_state_dict(averager.state_dict())
    with pytest.raises(ValueError, match="spacing=1epoch: expected a number of steps"):
        Lawa(loop.model, spacing="1epoch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"decay=1\.5"):
        Ema(loop.model, decay=1.5)


def test_snapshots_copied_beside_the_next_step():
    """Parameters change only in the optimizer's step, which waits; buffers already in the next forward pass."""
    plain, beside = Loop(), Loop()
    expected, lawa = (Lawa(x.model, k=3, spacing=2) for x in (plain, beside))
    lawa.window.fence_before(beside.optimizer)
    plain.train(9, expected)
    beside.train(9, lawa)
    assert_same(lawa.average(), expected.average())

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(40_000_000))
            self.register_buffer("count", torch.zeros(1000))

    model = Large()
    lawa = Lawa(model, k=1, spacing=1)
    lawa.window.fence_before(torch.optim.SGD(model.parameters()))
    lawa.update(1)
    model.count += 1  # as batch norm does, while the weight is still being copied
    assert lawa.average()["count"].sum() == 0


def settled(window) -> list[str]:
    """The names of a window's files, when what was under way is done."""
    window._disk._thread.submit(int).result()
    return sorted(p.name for p in window._disk._path(0).parent.iterdir())


def test_a_window_on_the_disk(tmp_path):
    loop = Loop()
    expected = Lawa(loop.model, k=3, spacing=2)
    lawa = Lawa(loop.model, k=3, spacing=2, window=Window(tmp_path / "snapshots"))
    lawa.window.fence_before(loop.optimizer)
    loop.train(2, expected, lawa)
    in_memory = weakref.ref(lawa.window.snapshots[2].tensors["norm.weight"])
    assert settled(lawa.window) == ["step_00000002.pt"] and in_memory() is None
    for step in range(3, 14):
        loop.train(step, expected, lawa)
        if lawa.defined:
            assert_same(lawa.average(), expected.average())
    assert settled(lawa.window) == [f"step_{s:08d}.pt" for s in (8, 10, 12)]
    resumed = Lawa(loop.model, k=3, spacing=2, window=Window(tmp_path / "snapshots"))  # in a folder of its own there
    resumed.load_state_dict(saved_and_read(lawa.state_dict()))
    loop.train(17, expected, lawa, resumed)
    assert_same(lawa.average(), expected.average())
    assert_same(resumed.average(), expected.average())
    assert settled(resumed.window) == settled(lawa.window) == [f"step_{s:08d}.pt" for s in (12, 14, 16)]
    del loop, lawa, resumed
    gc.collect()
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    loop = Loop()
    lawa = Lawa(loop.model, k=3, spacing=1, window=Window(tmp_path))
    (folder,) = tmp_path.iterdir()
    folder.rmdir()
    with pytest.raises(RuntimeError, match="does not exist"):
        loop.train(4, lawa)


def test_the_whole_average_as_a_file(tmp_path):
    loop = Loop()
    swa = Swa(loop.model)
    loop.train(8, swa)
    save_file(swa.full_average(tied_once=True), tmp_path / "model.safetensors")
    model = Net()
    load_model(model, tmp_path / "model.safetensors")
    assert_same(live_tensors(model), swa.average())
    assert model.head.weight is model.embed.weight


@pytest.mark.slow
def test_a_compiled_model():
    """Names are the model's own; the compiled code computes with what is in place."""
    plain, compiled = Loop(), Loop()
    expected = Lawa(plain.model, k=3, spacing=2)
    inner = compiled.model
    compiled.model = torch.compile(inner)
    lawa = Lawa(compiled.model, k=3, spacing=2)
    for step in range(1, 8):
        plain.train(step, expected)
        inner.load_state_dict(plain.model.state_dict())
        lawa.update(step)
    assert_same(lawa.average(), expected.average())
    tokens = torch.arange(11)
    with torch.no_grad(), lawa.applied(), expected.applied():
        inside, by_hand = compiled.model.eval()(tokens), plain.model.eval()(tokens)
    torch.testing.assert_close(inside, by_hand)
    assert not torch.allclose(compiled.model(tokens), inside)
    torch.testing.assert_close(compiled.model(tokens), plain.model(tokens))


def test_a_window_is_one_models_and_one_trainings():
    first, second = Loop(), Loop()
    window = Window()
    lawa = Lawa(first.model, k=2, spacing=2, window=window)
    with pytest.raises(ValueError, match="a Window of its own"):
        Lawa(second.model, k=2, spacing=2, window=window)
    first.train(8, lawa)
    again = Lawa(first.model, k=2, spacing=2, window=window)  # the same model trained anew, with the window of before
    with torch.no_grad():
        first.model.embed.weight.fill_(100.0)
    for step in (1, 2, 3, 4):
        again.update(step)
    assert (again.average()["embed.weight"] == 100.0).all()


def test_loading_a_state_forgets_another_training():
    loop, other = Loop(), Loop()
    old, new = Lawa(loop.model, k=3, spacing=10), Lawa(other.model, k=3, spacing=10)
    for step in (60, 70, 80):
        old.update(step)
    new.update(80)
    old.load_state_dict(new.state_dict())
    assert old.averager.snapshot_steps == [80] and not old.defined


def test_steps_that_were_left_out_are_warned_of_once(recwarn):
    model = nn.Linear(2, 1)
    lawa, ema, swa = Lawa(model, k=2, spacing=20), Ema(model, decay=0.9, every=15), Swa(model, every=10, start=20)
    for step in (10, 20, 30, 40, 50):
        for averager in (lawa, ema, swa):
            averager.update(step)
    (warned,) = recwarn.list
    assert warned.filename == __file__
    assert str(warned.message) == (
        "ema-d0.9-e15: update(10) was followed by update(20), so step 15 was never observed; call update after every "
        "step, or choose every so that it is called at all its multiples"
    )
    resumed = Ema(model, decay=0.9, every=15)
    resumed.load_state_dict(ema.state_dict())  # 30 was observed
    resumed.update(45)
    assert len(recwarn.list) == 1
    with pytest.warns(match="step 60 was never observed"):
        resumed.update(61)


@pytest.mark.parametrize("cls", [Lawa, Wma, Ema, PowerEma, Swa, Bema])
def test_a_class_takes_the_settings_with_their_defaults(cls):
    model = nn.Linear(1, 1)
    of_settings = type(cls(model).settings)
    fields = {field.name: field.default for field in dataclasses.fields(of_settings)}
    parameters = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name != "window"}
    assert parameters == {"model": inspect.Parameter.empty, **fields}
    for name, default in fields.items():
        other = not default if isinstance(default, bool) else type(default)(default / 2 + 1 / 16) or 7
        assert cls(model, **{name: other}).settings == dataclasses.replace(of_settings(), **{name: other})


def test_any_averager_is_made_from_its_settings():
    loop = Loop()
    by_name, by_settings = Lawa(loop.model, k=2, spacing=3), ModelAverager(loop.model, LawaSettings(k=2, spacing=3))
    loop.train(7, by_name, by_settings)
    assert_same(by_name.average(), by_settings.average())
    with pytest.raises(ValueError, match=r"lawa\.k=0: expected an integer of at least 1"):
        ModelAverager(loop.model, LawaSettings(k=0))


def test_conf_repeats_no_default():
    """What conf/avg has is the settings' own, what other keys say, or something else than the default."""
    read_defaults()
    for kind, cls in AVERAGERS.items():
        text = (CONF / "avg" / f"{kind}.yaml").read_text()
        assert {*yaml.safe_load(text)} == {*setting_names(cls)}
        for name, value in yaml.safe_load(text).items():
            own = f"{name}: {TAG} {kind}.{name}" in text
            assert (value == default_of(cls, name)) == own, (kind, name)
    swa = yaml.safe_load((CONF / "avg" / "swa.yaml").read_text())
    assert SWA_START.startswith(f"{swa['start']} ")
    with pytest.raises(ValueError, match=r"!default ema\.k: did you mean"):
        yaml.safe_load("k: !default ema.k")


def test_state_of_another_kind_is_refused():
    model = nn.Linear(1, 1)
    for averager in (Swa(model, every=2), PowerEma(model)):
        with pytest.raises(
            ValueError, match=rf"ema-d0.99-e1: .* of another kind of averager \({averager.settings.kind}\)"
        ):
            Ema(model).load_state_dict(averager.state_dict())
