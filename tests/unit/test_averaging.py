"""Each averager against its closed form over many steps, and its state against a restart at every step."""

import numpy as np
import pytest
import torch

from lawa_exp.averaging import EmaSettings, LawaSettings, SwaSettings, build_averager
from lawa_exp.averaging.window import Window

STEPS = 60
AVERAGED = frozenset({"w", "half"})
SETTINGS = [
    LawaSettings(k=3, spacing=5, start=0),
    LawaSettings(k=4, spacing=3, start=20),
    LawaSettings(k=1, spacing=7, start=0),
    EmaSettings(decay=0.9, every=1, start=0),
    EmaSettings(decay=0.3, every=4, start=11),
    SwaSettings(every=1, start=0),
    SwaSettings(every=6, start=25),
]


def weights_at(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "w": torch.randn(33, 7, generator=generator) * 10.0 ** (step % 5),
        "half": torch.randn(19, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(step),
        "running_mean": torch.full((3,), float(step)),
    }


def closed_form(settings, step: int) -> dict[str, np.ndarray] | None:
    """The average in float64 (the mean of float32 inputs is exact to one rounding), straight from the definition."""
    period = settings.spacing if settings.kind == "lawa" else settings.every
    observed = [t for t in range(1, step + 1) if t >= settings.start and t % period == 0]
    if settings.kind == "lawa":
        if len(observed) < settings.k:
            return None
        observed = observed[-settings.k :]
    if not observed:
        return None
    theta = [{n: v.double().numpy() for n, v in weights_at(t).items() if n in AVERAGED} for t in observed]
    n = len(observed)
    if settings.kind == "ema":
        d = settings.decay
        factors = [d ** (n - 1)] + [(1 - d) * d ** (n - 1 - i) for i in range(1, n)]
        return {name: sum(f * t[name] for f, t in zip(factors, theta, strict=True)) for name in AVERAGED}
    total = {name: theta[0][name].copy() for name in AVERAGED}
    for t in theta[1:]:
        for name in AVERAGED:
            total[name] += t[name]
    return {name: total[name] / n for name in AVERAGED}


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
        if settings.kind == "ema":  # float32 recursion
            np.testing.assert_allclose(got["w"].numpy(), expected["w"], rtol=2e-5, atol=2e-4)
        else:  # a float64 sum in step order, rounded once: the same bytes
            assert got["w"].numpy().tobytes() == expected["w"].astype(np.float32).tobytes()
            assert torch.equal(got["half"], torch.from_numpy(expected["half"]).to(torch.bfloat16))
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
        EmaSettings(0.999, 1, 0).id,
        EmaSettings(0.9991, 1, 0).id,
        EmaSettings(0.999, 10, 0).id,
        SwaSettings(10, 0).id,
        SwaSettings(10, 75).id,
    ]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "lawa-k5-s100" and ids[3] == "ema-d0.999-e1"
