"""Savings in the papers' units, from curves that have them."""

import pytest

from lawa_exp.results.savings import Price, longest_saving, table_of
from lawa_exp.system.errors import UserError


def curves(later: int, last: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """By epoch: a baseline that falls in a straight line, and an average that is `later` epochs ahead from half on."""
    baseline = [(e, 5 - 0.01 * e) for e in range(1, last + 1)]
    ahead = {e: min(later, e) if e >= last // 2 else 1 for e in range(2, last - later + 1)}
    return baseline, [(e, 5 - 0.01 * (e + gain)) for e, gain in ahead.items()]


@pytest.mark.parametrize(
    ("epochs", "last", "minutes", "hours"), [(45, 200, 10, 30.0), (39, 90, 26, 67.6), (40, 90, 26, 69.3)]
)
def test_gpu_hours_of_kaddour(epochs: int, last: int, minutes: float, hours: float) -> None:
    """RoBERTa: 45 epochs of 10 minutes on 4 GPUs; ResNet-50: 39 to 40 of 26 minutes."""
    saving = longest_saving(*curves(epochs, last), Price.of_epochs(minutes, gpus=4))
    assert (saving.steps, saving.reached) == (pytest.approx(epochs), True)
    assert saving.epochs == pytest.approx(epochs)
    assert saving.gpu_hours == pytest.approx(hours, abs=0.05)


def test_gpu_hours_of_sanyal() -> None:
    """Pythia-6.9B: 33,500 GPU hours for 143,000 steps; 4,200 of them are 17.9 thousand steps, an eighth."""
    price = Price.of_run(33_500, 143_000)
    assert price.gpu_hours_per_step == pytest.approx(0.234, abs=5e-4)
    baseline = [(s, 3 - s / 143_000) for s in range(1000, 143_001, 1000)]
    saving = longest_saving(baseline, [(100_000, 3 - 117_928 / 143_000)], price)
    assert saving.gpu_hours == pytest.approx(4200, abs=1)
    assert saving.text() == "17,928 steps, 4.2e+03 GPU hours"


def test_steps_and_epochs_are_one_saving() -> None:
    """136 updates an epoch, as RoBERTa's: the same GPU hours from curves by step."""
    by_epoch = curves(45, 200)
    by_step = [[(136 * e, v) for e, v in curve] for curve in by_epoch]
    saving = longest_saving(*by_step, Price.of_epochs(10, 4, steps_per_epoch=136))
    assert (saving.steps, saving.epochs, saving.gpu_hours) == pytest.approx((45 * 136, 45, 30))


def test_what_is_never_reached_is_a_bound_and_accuracy_counts_upwards() -> None:
    accuracy = [(e, e / 100) for e in range(10, 91, 10)]
    saving = longest_saving(accuracy, [(20, 0.45), (40, 0.5)], higher_is_better=True)
    assert (saving.steps, saving.reached, saving.at) == (pytest.approx(25), True, 20)
    beyond = longest_saving(accuracy, [(30, 0.95)], Price.of_epochs(6, 10), higher_is_better=True)
    assert (beyond.steps, beyond.reached) == (60, False)
    assert beyond.text() == "> 60 steps, > 60 epochs, > 60 GPU hours"
    table = table_of({"lawa": saving, "ema": beyond})
    assert table[0] == ["average", "steps saved", "epochs", "GPU hours", "at step"]
    assert table[1:] == [["lawa", "25", "", "", "20"], ["ema", "> 60", "> 60", "> 60", "30"]]
    with pytest.raises(UserError, match="expected evaluations"):
        longest_saving([], [(1, 1.0)])


def test_worse_than_the_first_evaluation_of_the_baseline_is_no_saving() -> None:
    """When the baseline was there is not known: with an evaluation before, it is, and the saving is negative."""
    baseline, average = [(20, 7.0777), (40, 6.7605)], [(20, 7.0976), (40, 6.7888)]
    saving = longest_saving(baseline, average)
    assert saving.at == 40 and saving.steps == pytest.approx(20 * (7.0777 - 6.7888) / (7.0777 - 6.7605) - 20)
    assert longest_saving([(0, 10.8), *baseline], average).steps == pytest.approx(
        20 * (10.8 - 7.0976) / (10.8 - 7.0777) - 20
    )
    assert longest_saving(baseline, [(20, 9.0), (40, 8.0)]).at == 40, "none is known: the last one"
