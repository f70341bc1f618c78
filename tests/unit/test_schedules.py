"""Learning rates against their closed forms."""

import math

import pytest

from lawa_exp.axes.batch.constant import ConstantBatch
from lawa_exp.axes.batch.ramp import RampBatch
from lawa_exp.axes.batch.steps import StepsBatch
from lawa_exp.axes.fault.none import NoFault
from lawa_exp.axes.lr import rates
from lawa_exp.axes.lr.constant import Constant
from lawa_exp.axes.lr.cosine import Cosine
from lawa_exp.axes.lr.inverse_sqrt import InverseSqrt
from lawa_exp.axes.lr.on_the_fly import OnTheFly
from lawa_exp.axes.lr.polynomial import Polynomial
from lawa_exp.axes.lr.power import Power
from lawa_exp.axes.lr.step import Steps
from lawa_exp.axes.lr.wsd import WSD
from lawa_exp.axes.scaling import SCALINGS
from lawa_exp.axes.scaling.capped import Capped
from lawa_exp.axes.scaling.linear import Linear
from lawa_exp.axes.scaling.none import NoScaling
from lawa_exp.axes.scaling.power import PowerScaling
from lawa_exp.axes.scaling.sqrt import SquareRoot
from lawa_exp.seams.batches import Batches
from lawa_exp.system.errors import UserError

ONE = Batches([(0, 1)], 1)


def rate(schedule, step, batches=ONE):
    return rates.rate(schedule, NoScaling(), NoFault(), batches, step)


def test_constant_with_warmup():
    s = Constant(peak=2.0, warmup_steps=4, horizon=10, unit="steps")
    assert [rate(s, t) for t in (1, 2, 3, 4, 5, 10, 99)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


def test_cosine_ends_at_its_final_ratio_and_stays_there():
    s = Cosine(peak=1.0, warmup_steps=10, horizon=110, unit="steps", final_ratio=0.1)
    for t in range(11, 111):
        assert rate(s, t) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * (t - 10) / 100)), abs=1e-15)
    assert rate(s, 10) == 1.0
    assert rate(s, 60) == pytest.approx(0.55)
    assert rate(s, 110) == rate(s, 200) == pytest.approx(0.1)


def test_no_warmup():
    assert rate(Cosine(peak=1.0, warmup_steps=0, horizon=2, unit="steps", final_ratio=0.0), 2) == pytest.approx(0)
    assert rate(Constant(peak=1.0, warmup_steps=0, horizon=2, unit="steps"), 1) == 1.0


def test_a_warmup_beyond_a_cosines_horizon_is_refused():
    with pytest.raises(UserError, match=r"lr.warmup_steps=20: expected at most the horizon, 10 steps"):
        Cosine(peak=1.0, warmup_steps=20, horizon=10, unit="steps", final_ratio=0.1).fits()
    Constant(peak=1.0, warmup_steps=20, horizon=10, unit="steps").fits()


def test_polynomial_and_linear():
    s = Polynomial(2.0, 10, 110, "steps", 0.25, 1.0)
    assert [rate(s, t) for t in (5, 10, 60, 110, 500)] == pytest.approx([1.0, 2.0, 1.25, 0.5, 0.5])
    s = Polynomial(2.0, 0, 100, "steps", 0.0, 2.0)
    assert [rate(s, t) for t in (1, 50, 90, 100)] == pytest.approx([2 * 0.99**2, 0.5, 0.02, 0.0])


def test_steps():
    s = Steps(1.0, 0, 100, "steps", (30, 60), 0.1)
    assert [rate(s, t) for t in (1, 30, 31, 60, 61, 1000)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    with pytest.raises(UserError, match=r"lr.at=\[60, 30\]: expected ascending steps"):
        Steps(1.0, 0, 100, "steps", (60, 30), 0.1).fits()


def test_a_measured_rate_is_for_the_schedule_that_measures():
    """A branch has the measurement of its source, whatever its own schedule is."""
    measures = OnTheFly(2.0, 5, 100, "steps", 10, 15, "all")
    assert [rates.rate(measures, NoScaling(), NoFault(), ONE, t, 7.0) for t in (5, 20, 21, 99)] == [2.0, 2.0, 7.0, 7.0]
    assert rates.rate(measures, Linear(4, "steps"), NoFault(), ONE, 21, 8.0) == 2.0
    constant = Constant(2.0, 5, 100, "steps")
    assert rates.rate(constant, NoScaling(), NoFault(), ONE, 50, 7.0) == 2.0


@pytest.mark.parametrize(
    "shape, left",
    [
        ("linear", lambda x: 1 - x),
        ("1-sqrt", lambda x: 1 - x**0.5),
        ("cosine", lambda x: math.cos(math.pi * x / 2) ** 2),
    ],
)
def test_wsd(shape, left):
    s = WSD(2.0, 10, 100, "steps", 20, shape, 0.1)
    assert [rate(s, t) for t in (5, 10, 11, 80)] == [1.0, 2.0, 2.0, 2.0]
    for t in range(81, 101):
        assert rate(s, t) == pytest.approx(0.2 + 1.8 * left((t - 80) / 20), abs=1e-12)
    assert rate(s, 100) == rate(s, 200) == pytest.approx(0.2)
    with pytest.raises(UserError, match=r"lr.decay_steps=95: with the warm-up of 10 steps it is longer than the hor"):
        WSD(2.0, 10, 100, "steps", 95, shape, 0.1).fits()


def test_wsd_exponential():
    s = WSD(2.0, 0, 100, "steps", 10, "exponential", 0.01)
    assert [rate(s, t) for t in (90, 95, 100)] == pytest.approx([2.0, 0.2, 0.02])
    with pytest.raises(UserError, match=r"final_ratio=0: an exponential decay needs one above 0"):
        WSD(2.0, 0, 100, "steps", 10, "exponential", 0.0)


def test_inverse_square_root():
    s = InverseSqrt(1.0, 100, 1000, "steps", None)
    assert [rate(s, t) for t in (50, 100, 400, 10_000)] == pytest.approx([0.5, 1.0, 0.5, 0.1])  # fairseq's
    s = InverseSqrt(1.0, 100, 1000, "steps", 300)
    assert rate(s, 1000) == pytest.approx((300 / (1000 - 100 + 300)) ** 0.5)  # Meterez et al. 2026


def test_power_scheduler_gives_the_papers_rate():
    """min(0.02, B * 4 * n^-0.51) at 10T tokens with 1,024 sequences of 4,096 tokens."""
    batches = Batches([(0, 1024)], 4096)
    steps = int(10e12 / 1024 / 4096)
    s = Power(0.02, 0, steps, "tokens", 4.0, -0.51, 0, "linear", 0.0)
    assert rate(s, steps, batches) == pytest.approx(1024 * 4 * 1e13**-0.51, rel=1e-3)
    assert rate(s, 1, batches) == 0.02  # the cap
    late = Power(0.02, 0, steps, "tokens", 4.0, -0.51, steps // 10, "exponential", 0.01)
    assert rate(late, steps, batches) == pytest.approx(0.01 * rate(s, steps - steps // 10, batches))
    short = Batches([(0, 4096)], 1024)  # the same tokens in shorter sequences
    assert rate(s, steps, short) == rate(s, steps, batches)


def by_simulation(steps, wanted):
    """Sizes and samples before each step, update after update, as the definition says."""
    seen, sizes, samples = 0, [], [0]
    for _ in range(steps):
        sizes.append(wanted(seen))
        seen += sizes[-1]
        samples.append(seen)
    return sizes, samples


@pytest.mark.parametrize(
    "batch, wanted",
    [
        (ConstantBatch(7, None), lambda seen: 7),
        (StepsBatch(4, (8, 16), (30, 100), "samples", None), lambda seen: 4 if seen < 30 else 8 if seen < 100 else 16),
        (StepsBatch(4, (8, 2), (1.0, 2.0), "epochs", None), lambda seen: 4 if seen < 50 else 8 if seen < 100 else 2),
        (StepsBatch(4, (8,), (320.0,), "tokens", None), lambda seen: 4 if seen < 32 else 8),
        (RampBatch(2, 10, 2, 80, "samples", None), lambda seen: min(10, 2 + 2 * (seen // 20))),
        (
            StepsBatch(64, (1, 2), (10, 20), "samples", None),
            lambda seen: 64 if seen == 0 else 2,
        ),  # one is passed over
    ],
    ids=lambda value: type(value).__name__,
)
def test_batches_against_a_simulation(batch, wanted):
    batches = batch.batches(10, 50)
    sizes, samples = by_simulation(60, wanted)
    assert [batches.size(t) for t in range(1, 61)] == sizes
    assert [batches.samples(t) for t in range(61)] == samples
    assert [batches.tokens(t) for t in range(61)] == [10 * s for s in samples]
    for amount in range(samples[-1] + 1):
        assert batches.steps(amount) == next(t for t, s in enumerate(samples) if s >= amount)


def test_a_schedule_in_samples_follows_the_batch():
    batches = RampBatch(2, 10, 2, 80, "samples", None).batches(10, 50)
    steps = 40
    in_steps = Polynomial(1.0, 0, steps, "steps", 0.0, 1.0)
    in_samples = Polynomial(1.0, 0, steps, "samples", 0.0, 1.0)
    for t in (1, 10, 20, 40):
        assert rate(in_steps, t, batches) == pytest.approx(1 - t / steps)
        assert rate(in_samples, t, batches) == pytest.approx(1 - batches.samples(t) / batches.samples(steps))


def test_batches_that_cannot_be():
    with pytest.raises(UserError, match=r"at=\[1.0\]: expected as many as sizes=\[8, 16\]"):
        StepsBatch(4, (8, 16), (1.0,), "epochs", None)
    with pytest.raises(UserError, match=r"at=\[2.0, 1.0\]: expected ascending amounts"):
        StepsBatch(4, (8, 16), (2.0, 1.0), "epochs", None)
    with pytest.raises(UserError, match=r"increment=3: expected steps that lead from 4 up to 8"):
        RampBatch(4, 8, 3, 10, "samples", None)


def test_scaling_rules():
    """Factors at batches of 8, 32 and 512 samples of 1,024 tokens; 1 at the base batch."""
    expected = [
        (NoScaling(), [1, 1, 1]),
        (Linear(32, "steps"), [1 / 4, 1, 16]),
        (SquareRoot(32, "steps"), [1 / 2, 1, 4]),
        (Capped(32, 128, 1.0, "steps"), [1 / 4, 1, 4]),
        (Capped(32, 128, 0.5, "steps"), [1 / 2, 1, 2]),
        (PowerScaling(8, "steps"), [1 / 4, 1, 16]),
    ]
    assert {type(scaling) for scaling, _ in expected} == {cls for name, cls in SCALINGS.items() if name != "custom"}
    for scaling, factors in expected:
        assert [scaling.factor(size, 1024) for size in (8, 32, 512)] == factors
    ramp = StepsBatch(8, (32,), (80.0,), "samples", None).batches(1024, 10_000)
    constant = Constant(2.0, 0, 100, "steps")
    assert [rates.rate(constant, Linear(32, "steps"), NoFault(), ramp, t) for t in (10, 11)] == [0.5, 2.0]
