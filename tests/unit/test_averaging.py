"""Each averager against its closed form over many steps, and its state against a restart at every step."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch

from lawa_exp.averaging import (
    BemaSettings,
    EmaSettings,
    LawaSettings,
    ModelAverager,
    PowerEmaSettings,
    SwaSettings,
    WmaSettings,
    build_averager,
    observed_steps,
    row_fields,
)
from lawa_exp.averaging.arithmetic import rounded
from lawa_exp.averaging.settings import RunningSettings
from lawa_exp.averaging.window import Window
from lawa_exp.config.rules import setting, steps

STEPS = 60
AVERAGED = frozenset({"w", "half"})
SETTINGS = [
    LawaSettings(k=3, spacing=5, start=0),
    LawaSettings(k=4, spacing=3, start=20),
    LawaSettings(k=1, spacing=7, start=0),
    WmaSettings(k=3, spacing=5, start=0),
    WmaSettings(k=4, spacing=2, start=9),
    EmaSettings(decay=0.9, every=1, start=0, warmup=False),
    EmaSettings(decay=0.3, every=4, start=11, warmup=False),
    EmaSettings(decay=0.95, every=2, start=0, warmup=True),
    EmaSettings(decay="half_life:7", every=3, start=0, warmup=False),
    EmaSettings(decay="half_life:4%", every=1, start=0, warmup=False),
    EmaSettings(decay="half_life:30%", every=2, start=8, warmup=True),
    EmaSettings(decay="lawa:5", every=5, start=0, warmup=False),
    PowerEmaSettings(sigma_rel=0.05, every=1),
    PowerEmaSettings(sigma_rel=0.2, every=4),
    BemaSettings(every=1, start=0, ema_power=0.5, bias_power=0.2, lag=10),
    BemaSettings(every=4, start=9, ema_power=0.3, bias_power=0.7, lag=0),
    SwaSettings(every=1, start=0),
    SwaSettings(every=6, start=25),
]
EXACT = ("lawa", "wma", "swa")  # float64 sums in step order; the others are float32 recursions


def weights_at(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "w": torch.randn(33, 7, generator=generator) * 10.0 ** (step % 5),
        "half": torch.randn(19, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(step),
        "running_mean": torch.full((3,), float(step)),
    }


def weights_by_definition(settings, observed: list[int]) -> list[float]:
    """How much each observed step counts, written down from the papers' definitions."""
    n = len(observed)
    if settings.kind in ("lawa", "swa"):
        return [1 / n] * n
    if settings.kind == "wma":
        return [2 * (i + 1) / (n * (n + 1)) for i in range(n)]
    if settings.kind == "power_ema":
        s = settings.sigma_rel**-2
        g = max(np.roots([1, 7, 16 - s, 12 - s]).real)
        old = [(1 - settings.every / t) ** (g + 1) for t in observed]
    elif settings.kind == "bema":
        old = [1 - (settings.lag + t) ** -settings.ema_power for t in observed]
    else:
        old = {
            0.9: lambda t: 0.9,
            0.3: lambda t: 0.3,
            0.95: lambda t: 0.95,
            "half_life:7": lambda t: 0.5 ** (3 / 7),
            "half_life:4%": lambda t: 2 ** (-25 / t),  # Anytime Pretraining's 2^(-f/t), f = 25
            "half_life:30%": lambda t: 2 ** (-2 / (0.3 * t)),
            "lawa:5": lambda t: 4 / 6,
        }[settings.decay]
        old = [old(t) for t in observed]
        if settings.warmup:
            old = [min(d, 1 - (1 + i) ** (-2 / 3)) for i, d in enumerate(old)]
    weights = [math.prod(old[1:])] + [(1 - old[i]) * math.prod(old[i + 1 :]) for i in range(1, n)]
    if settings.kind == "bema" and n > 1:
        a = (settings.lag + observed[-1]) ** -settings.bias_power
        weights[0] -= a
        weights[-1] += a
    return weights


def observed_by_definition(settings, step: int) -> list[int]:
    period = settings.spacing if settings.kind in ("lawa", "wma") else settings.every
    observed = [t for t in range(1, step + 1) if t >= settings.start and t % period == 0]
    if settings.kind in ("lawa", "wma"):
        return observed[-settings.k :] if len(observed) >= settings.k else []
    return observed


def closed_form(settings, step: int) -> dict[str, np.ndarray] | None:
    """The average in float64, straight from the definition."""
    observed = observed_by_definition(settings, step)
    if not observed:
        return None
    theta = [{n: v.double().numpy() for n, v in weights_at(t).items() if n in AVERAGED} for t in observed]
    if settings.kind not in EXACT:
        factors = weights_by_definition(settings, observed)
        return {name: sum(f * t[name] for f, t in zip(factors, theta, strict=True)) for name in AVERAGED}
    factors = range(1, len(observed) + 1) if settings.kind == "wma" else [1] * len(observed)
    total = {name: factors[0] * theta[0][name] for name in AVERAGED}
    for f, t in zip(factors[1:], theta[1:], strict=True):
        for name in AVERAGED:
            total[name] += f * t[name]
    return {name: total[name] / sum(factors) for name in AVERAGED}


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.id)
def test_coefficients_are_the_definitions_weights(settings):
    for step in range(1, STEPS + 1):
        observed = observed_by_definition(settings, step)
        if not observed:
            continue
        got = settings.coefficients(observed_steps(settings, step))
        expected = weights_by_definition(settings, observed)
        np.testing.assert_allclose(np.array(got) / sum(got), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.id)
def test_closed_form_at_every_step(settings):
    averager = build_averager(settings, AVERAGED, Window())
    defined = 0
    for step in range(1, STEPS + 1):
        live = weights_at(step)
        averager.update(step, live)
        for tensor in live.values():
            tensor.zero_()  # an alias of the live weights would lose its value here
        expected, got = closed_form(settings, step), averager.average()
        assert (got is None) == (expected is None)
        if got is None:
            continue
        defined += 1
        last = max(t for t in range(1, step + 1) if t >= settings.start and t % settings.period == 0)
        assert got["count"].item() == last and got["count"].dtype == torch.int64
        assert torch.equal(got["running_mean"], torch.full((3,), float(last)))
        assert got["w"].dtype == torch.float32 and got["half"].dtype == torch.bfloat16
        if settings.kind not in EXACT:
            np.testing.assert_allclose(got["w"].numpy(), expected["w"], rtol=2e-5, atol=5e-3)
        else:  # a float64 sum in step order, rounded once: the same bytes
            assert got["w"].numpy().tobytes() == expected["w"].astype(np.float32).tobytes()
            assert torch.equal(got["half"], rounded(torch.from_numpy(expected["half"]), torch.bfloat16))
    assert defined > 10


def test_several_windows_share_their_snapshots_and_drop_what_nobody_needs():
    window = Window()
    averagers = [build_averager(LawaSettings(k, s, 0), AVERAGED, window) for k, s in ((3, 4), (5, 2), (2, 12))]
    for step in range(1, 100):
        for averager in averagers:
            averager.update(step, weights_at(step))
        needed = {t for a in averagers for t in a.settings.needed(step)}
        assert needed <= set(window.snapshots) <= needed | {step - step % 2}
        for a in averagers:
            expected = closed_form(a.settings, step)
            assert (a.average() is None) == (expected is None)
            if expected is not None:
                assert a.average()["w"].numpy().tobytes() == expected["w"].astype(np.float32).tobytes()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.id)
def test_state_taken_over_at_every_step_goes_on_to_the_same_bytes(settings):
    def new():
        window = Window()
        return window, build_averager(settings, AVERAGED, window)

    _, undisturbed = new()
    window, averager = new()
    for step in range(1, STEPS + 1):
        undisturbed.update(step, weights_at(step))
        averager.update(step, weights_at(step))
        (tensors, scalars), snapshots = averager.state(), window.snapshots
        window, averager = new()
        averager.load({n: t.clone() for n, t in tensors.items()}, scalars)
        window.snapshots.update(snapshots)
        a, b = undisturbed.average(), averager.average()
        assert (a is None) == (b is None)
        assert a is None or all(torch.equal(a[n], b[n]) for n in a)
    assert a is not None


def test_an_average_is_not_an_alias_of_the_state():
    for settings in SETTINGS:
        averager = build_averager(settings, AVERAGED, Window())
        for step in range(1, STEPS + 1):
            averager.update(step, weights_at(step))
        first = averager.average()
        kept = {n: t.clone() for n, t in first.items()}
        for tensor in first.values():
            tensor.zero_()
        assert all(torch.equal(kept[n], t) for n, t in averager.average().items())


def test_ids_are_told_apart_by_every_setting():
    ids = [
        LawaSettings(5, 100, 0).id,
        LawaSettings(5, 100, 10).id,
        LawaSettings(5, 10, 0).id,
        EmaSettings(0.999, 1, 0, False).id,
        EmaSettings(0.9991, 1, 0, False).id,
        EmaSettings(0.999, 10, 0, False).id,
        EmaSettings(0.999, 1, 0, True).id,
        EmaSettings("half_life:4%", 1, 0, False).id,
        EmaSettings("half_life:4", 1, 0, False).id,
        EmaSettings("lawa:4", 1, 0, False).id,
        WmaSettings(5, 100, 0).id,
        *(s.id for s in SETTINGS if s.kind in ("power_ema", "bema")),
        SwaSettings(10, 0).id,
        SwaSettings(10, 75).id,
    ]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "lawa-k5-s100" and ids[3] == "ema-d0.999-e1"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_sixteen_bits_is_done_once(dtype):
    """Against exact fractions: values near ties, where going by way of float32 makes a tie of what is none."""
    generator = torch.Generator().manual_seed(0)
    narrow = torch.randn(4000, generator=generator).to(dtype)
    above = torch.nextafter(narrow, torch.full_like(narrow, torch.inf))
    ties = (narrow.double() + above.double()) / 2
    values = torch.cat(
        [ties, ties * (1 + 2**-40), ties * (1 - 2**-40), torch.randn(4000, generator=generator).double()]
    )
    got = rounded(values, dtype).double()
    assert not torch.equal(values.to(dtype).double(), got), "torch's own conversion rounds twice: see `rounded`"
    for value, result in zip(values.tolist(), got.tolist(), strict=True):
        near = torch.tensor([result], dtype=dtype)
        for direction in (-torch.inf, torch.inf):
            other = torch.nextafter(near, torch.full_like(near, direction)).item()
            mine, theirs = abs(Fraction(value) - Fraction(result)), abs(Fraction(value) - Fraction(other))
            assert mine < theirs or (mine == theirs and near.view(torch.int16).item() % 2 == 0)
    edge = torch.tensor([1e300, -1e300, 0.0, -0.0, torch.inf, 1e-300], dtype=torch.float64)
    assert rounded(edge, dtype).tolist() == [torch.inf, -torch.inf, 0.0, 0.0, torch.inf, 0.0]


@dataclass(frozen=True)
class Largest(RunningSettings):
    """A new averager: the largest value that each weight has had; `below` is how far the last one is below it."""

    kind: ClassVar[str] = "largest"
    slots: ClassVar[tuple[str, ...]] = ("largest", "below")
    dtype: ClassVar[str] = "float64"
    every: int = setting(steps(1), "steps between two observations of the weights", default=2)

    @property
    def id(self) -> str:
        return f"largest-e{self.every}"

    def coefficients(self, steps):
        raise NotImplementedError

    def accumulate(self, running, theta, step, gap, earlier):
        for largest, below, weights in zip(running["largest"], running["below"], theta, strict=True):
            largest.copy_(largest.maximum(weights))
            below.copy_(largest - weights)

    def value(self, running, step, count):
        return running["largest"]


def test_a_new_averager_is_one_class():
    """In the trainer, and in somebody else's loop."""
    model, settings = torch.nn.Linear(3, 3), Largest()
    in_trainer = build_averager(settings, frozenset({"weight", "bias"}), Window())
    in_loop = ModelAverager(model, settings)
    seen = []
    for step in range(1, 10):
        torch.nn.init.normal_(model.weight)
        seen.append(model.weight.detach().clone())
        in_trainer.update(step, dict(model.state_dict()))
        in_loop.update(step)
        again = ModelAverager(model, settings)
        again.load_state_dict(in_loop.state_dict())
        in_loop = again
    assert settings.copies() == 4 and not settings.windowed
    for average in (in_trainer.average(), in_loop.average()):
        assert torch.equal(average["weight"], torch.stack(seen[1::2]).amax(0))
    assert row_fields(settings) == {"weights": "largest-e2", "averager": "largest", "every": 2}
