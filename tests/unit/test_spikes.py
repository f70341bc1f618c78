"""Spikes in curves whose spikes are known, and recoveries in closed form."""

import math

import numpy as np
import pytest

from lawa_exp.averaging import EmaSettings, LawaSettings
from lawa_exp.results.spikes import Recovery, Spike, recoveries, recovery, spikes
from lawa_exp.results.statistics import curve


def falling(count=400, noise=0.02, seed=0):
    """A training loss as they fall, every 5 steps, with normal noise."""
    draw = np.random.default_rng(seed).standard_normal(count)
    return [(5 * i, 2 + 3 * (1 + i / 10) ** -0.5 + noise * draw[i]) for i in range(count)]


def with_spike(points, first, heights):
    return [
        (s, v + (heights[i - first] if first <= i < first + len(heights) else 0)) for i, (s, v) in enumerate(points)
    ]


def test_a_closed_form():
    """Before it 0 and 1 in turn: median 0.5, MAD 0.5. The bound is 0.5 + 6 * 1.4826 * 0.5 = 4.95."""
    points = [(s, float(s % 2)) for s in range(50)]
    assert spikes([*points, (50, 4.9)]) == []
    found = spikes([*points, (50, 5.0), (51, 0.0), (52, 9.5), (53, 0.0)])
    assert found == [Spike(50, 52, 52, 0.5, 9.0, pytest.approx(9 / (1.4826 * 0.5)))]
    assert spikes([*points, (50, 5.0)], deviations=7) == []
    assert spikes([*points[1:], (50, 99.0)]) == []  # too few before it


def test_noise_and_a_fall_are_no_spike():
    assert sum(len(spikes(falling(seed=seed))) for seed in range(100)) <= 2  # of 35,000 values
    steep = [(s, 10 * 0.99**s) for s in range(500)]
    assert spikes(steep) == [] and spikes([(s, -v) for s, v in steep]) == []  # nor is a steady rise


@pytest.mark.parametrize(("window", "one_in"), [(10, 400), (20, 5000), (50, math.inf)])
def test_how_often_noise_alone_is_one(window, one_in):
    count = 100_000
    noise = np.random.default_rng(1).standard_normal(count).tolist()
    found = len(spikes(list(enumerate(noise)), window=window, gap=0))
    assert count / one_in / 3 <= found <= max(2, 3 * count / one_in)


def test_what_is_planted_is_found():
    heights = [1.0, 2.0, 1.5, 0.8, 0.6]
    for seed in range(20):
        (found,) = spikes(with_spike(falling(seed=seed), 200, heights))
        assert (found.first, found.peak, found.last) == (1000, 1005, 1020)
        assert found.height == pytest.approx(2, abs=0.15) and found.deviations > 20


def test_several_and_one_with_a_gap():
    points = with_spike(with_spike(falling(), 150, [1.0]), 300, [1.0, 0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 0, 0, 1.0])
    assert [(s.first, s.last) for s in spikes(points)] == [(750, 750), (1500, 1530), (1565, 1565)]
    assert [(s.first, s.last) for s in spikes(points, gap=6)] == [(750, 750), (1500, 1565)]


def test_a_spike_does_not_hide_the_next_one():
    """Where mean and standard deviation would: 20 of 50 values are high."""
    points = with_spike(falling(), 200, [3.0] * 20 + [0] * 10 + [1.0])
    assert [(s.first, s.last) for s in spikes(points)] == [(1000, 1095), (1150, 1150)]
    window = np.array([v for _, v in points[180:230]])
    assert points[230][1] < window.mean() + 6 * window.std()


def test_a_higher_level_is_one_spike_of_half_a_window():
    points = with_spike(falling(), 200, [1.0] * 200)
    (found,) = spikes(points)
    assert found.first == 1000 and 1000 + 5 * 20 <= found.last <= 1000 + 5 * 30


def test_recovery_in_closed_form():
    fell = [(s, 3 - s / 100) for s in range(0, 101, 10)]  # 2.0 at 100
    bump = [(110, 2.5), (120, 3.0), (130, 2.25), (140, 2.0), (150, 1.9)]
    assert recovery(fell + bump, 100) == Recovery(2.0, 120, 1.0, 40, 50)
    assert recovery(fell + bump, 105) == Recovery(2.0, 120, 1.0, 35, 45)
    assert recovery(fell + bump, 100, until=130) == Recovery(2.0, 120, 1.0, None, 30)
    assert recovery(fell, 50) == Recovery(2.5, 60, pytest.approx(-0.1), 0, 50)
    assert recovery(fell, 100) is None and recovery(fell[5:], 40) is None


def test_a_window_that_rises_late_recovers_late():
    points = [(10, 2.0), (20, 1.9), (30, 1.8), (40, 2.6), (50, 2.1), (60, 1.7)]
    assert recovery(points, 10) == Recovery(2.0, 40, pytest.approx(0.6), 50, 50)


def test_recoveries_of_live_and_averages():
    """A weight that is 0 but 1 after steps 101 to 110, and the loss is its square: each average in closed form."""
    decay, k, spacing = 0.9, 4, 10
    ema, lawa = EmaSettings(decay, 1, 0, False).id, LawaSettings(k, spacing, 0).id
    values = {
        "live": lambda t: 1.0 if 100 < t <= 110 else 0.0,
        ema: lambda t: 0.0 if t <= 100 else (1 - decay ** min(t - 100, 10)) * decay ** max(0, t - 110),
        lawa: lambda t: 1 / k if 110 <= t < 110 + k * spacing else 0.0,
    }
    rows = [
        {"step": t, "split": "val", "weights": id, "loss": 1.5 + w(t) ** 2}
        for t in range(0, 201, 5)
        for id, w in values.items()
        if id == "live" or t >= (10 if id == ema else k * spacing)
    ]
    rows += [{"step": t, "split": "val", "weights": "swa", "loss": 1.5} for t in range(150, 201, 5)]  # from 150 on
    rows += [{"step": 110, "split": "train", "weights": "live", "loss": 99.0}]
    found = recoveries(rows, 100)
    assert list(found) == ["live", ema, lawa]
    assert found["live"] == Recovery(1.5, 105, 1.0, 15, 100)
    assert found[lawa] == Recovery(1.5, 110, 1 / 16, 50, 100)
    assert found[ema].excess == pytest.approx((1 - 0.9**10) ** 2) and found[ema].steps is None
    assert math.isclose(dict(curve(rows, ema))[200], 1.5 + ((1 - 0.9**10) * 0.9**90) ** 2)
