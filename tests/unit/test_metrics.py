"""Rows, and what is computed and drawn from them."""

import json
import math

import pytest

from lawa_exp.results.curves import DRAWN, curves_of, highlighted
from lawa_exp.results.statistics import curve, mean_and_deviation, paired_difference, steps_saved, t95
from lawa_exp.storage.rows import Rows, encode, read_lines


def test_a_value_that_is_not_finite_is_null_and_named():
    row = json.loads(encode({"step": 3, "loss": math.nan, "grad_norm": math.inf, "lr": 0.1}))
    assert row == {"step": 3, "loss": None, "grad_norm": None, "lr": 0.1, "nonfinite": ["loss", "grad_norm"]}


def test_rows_are_cut_back_and_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = Rows(path)
    rows.write({"step": 1})
    length, _ = rows.sync()
    rows.write({"step": 2})
    rows.close()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert [r["step"] for r in read_lines(path)] == [1, 2]
    again = Rows(path, length)
    again.write({"step": 2})
    again.close()
    assert [r["step"] for r in read_lines(path)] == [1, 2]
    with pytest.raises(OSError, match="less than"):
        Rows(path, 10_000)


BASELINE = [(0, 5.0), (100, 3.0), (200, 2.0), (300, 2.5), (400, 1.0)]


@pytest.mark.parametrize(
    "step, value, expected",
    [
        (100, 2.5, (50, True)),  # half-way between two evaluations
        (100, 2.0, (100, True)),
        (100, 1.0, (300, True)),
        (200, 1.75, (150, True)),  # over the bump: between 300 and 400
        (300, 4.0, (-250, True)),  # the baseline was there before
        (100, 0.5, (300, False)),  # "> 300"
        (400, 0.9, (0, False)),
        (100, 6.0, (-100, True)),
    ],
)
def test_steps_saved(step, value, expected):
    assert steps_saved(BASELINE, step, value) == expected


def test_steps_saved_is_kaddours_arithmetic():
    """45 epochs x 10 minutes x 4 GPUs = 30 GPU hours (Kaddour 2022, section 4)."""
    epochs = [(e, 10 - 0.1 * e) for e in range(0, 101)]
    saved, reached = steps_saved(epochs, 50, 10 - 0.1 * 95)
    assert reached and saved == pytest.approx(45) and saved * 10 * 4 / 60 == pytest.approx(30)


def test_curve_takes_one_kind_of_weights():
    rows = [
        {"step": 10, "split": "val", "weights": "live", "loss": 2.0},
        {"step": 5, "split": "val", "weights": "live", "loss": None, "nonfinite": ["loss"]},
        {"step": 0, "split": "val", "weights": "live", "loss": 3.0},
        {"step": 10, "split": "val", "weights": "ema", "loss": 1.0},
        {"step": 10, "split": "train", "weights": "live", "loss": 9.0},
    ]
    assert curve(rows, "live") == [(0, 3.0), (10, 2.0)]


def test_students_t_against_scipy():
    """At every number of degrees of freedom up to 400, so between those of the table too."""
    t = pytest.importorskip("scipy.stats").t
    degrees = range(1, 401)
    assert [t95(d) for d in degrees] == pytest.approx(list(t.ppf(0.975, degrees)), abs=6e-4)
    assert math.isinf(t95(0)) and t95(10**9) == pytest.approx(1.96, abs=1e-6)


def test_paired_difference_against_a_worked_example():
    """Differences 1, 2, 3: mean 2, standard deviation 1, half-width 4.303 / sqrt(3)."""
    mean, half = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3))
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert math.isnan(mean_and_deviation([1.0])[1])


def made_up(averages: int) -> list[dict]:
    """Rows of so many averages, three in four lawa and the others ema; each is better than the one before."""
    ids = [("lawa" if i % 4 else "ema", i) for i in range(averages)]
    rows = [{"step": s, "split": "val", "weights": "live", "loss": 5 - s / 100} for s in (0, 100, 200)]
    for kind, i in ids:
        at = [{"step": s, "loss": 4.5 - s / 100 - i / 100} for s in (100, 200)]
        rows += [{"split": "val", "weights": f"{kind}-{i}", "averager": kind, **row} for row in at]
    return rows


def test_of_many_averages_the_best_of_each_kind_are_told_apart():
    few, many = made_up(DRAWN), made_up(18)
    assert highlighted(few) == ["ema-0", "lawa-1", "lawa-2", "lawa-3", "ema-4", "lawa-5"]
    assert highlighted(many) == ["ema-16", "lawa-17"]
    stopped = [r for r in many if (r["weights"], r["step"]) != ("lawa-17", 200)]  # it has no loss at the end
    assert highlighted(stopped) == ["lawa-15", "ema-16"]
    for rows, labels in ((few, highlighted(few)), (many, ["16 others", "ema-16", "lawa-17"])):
        sheet = curves_of(rows, "title", "nats")
        (axes,) = sheet.panels
        assert sorted(text.get_text() for text in sheet.figure.legends[0].get_texts()) == sorted(["live", *labels])
        lines = {line.get_label(): line for line in axes.lines}
        assert len(axes.lines) == 1 + len([r for r in rows if r["step"] == 200]) - 1
        colours = [lines[label].get_color() for label in ["live", *labels]]
        assert colours[0] == "black" and len(set(colours)) == len(colours)
        assert all(line.get_color() == "0.8" for line in axes.lines if line.get_label().startswith("_"))
