"""Learning rates against their closed forms."""

import math

import pytest

from lawa_exp.config import UserError
from lawa_exp.schedules import Constant, Cosine, check, rate


def test_constant_with_warmup():
    s = Constant(peak=2.0, warmup_steps=4, horizon=10)
    assert [rate(s, t) for t in (1, 2, 3, 4, 5, 10, 99)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


def test_cosine_ends_at_its_final_ratio_and_stays_there():
    s = Cosine(peak=1.0, warmup_steps=10, horizon=110, final_ratio=0.1)
    for t in range(11, 111):
        assert rate(s, t) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * (t - 10) / 100)), abs=1e-15)
    assert rate(s, 10) == 1.0
    assert rate(s, 60) == pytest.approx(0.55)
    assert rate(s, 110) == rate(s, 200) == pytest.approx(0.1)


def test_no_warmup():
    assert rate(Cosine(peak=1.0, warmup_steps=0, horizon=2, final_ratio=0.0), 2) == pytest.approx(0)
    assert rate(Constant(peak=1.0, warmup_steps=0, horizon=2), 1) == 1.0


def test_a_warmup_beyond_a_cosines_horizon_is_refused():
    with pytest.raises(UserError, match=r"lr.warmup_steps=20: expected at most the horizon, 10 steps"):
        check(Cosine(peak=1.0, warmup_steps=20, horizon=10, final_ratio=0.1))
    check(Constant(peak=1.0, warmup_steps=20, horizon=10))
