"""The recommendation from a trajectory: the rule in closed form, and the command on a real run."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import rows, run, tiny

from lawa_exp.averaging import EmaSettings, LawaSettings, SwaSettings, row_fields
from lawa_exp.axes.dataset.tasks import Classes
from lawa_exp.config.parts import NoAmounts
from lawa_exp.launch.compose import compose, read
from lawa_exp.readout.choice import choose, cost, cross_fitted
from lawa_exp.readout.suggestion import (
    candidates,
    earlier_steps,
    first_helpful,
    first_observed,
    judged,
    lines_of,
    measured,
)
from lawa_exp.storage.commit import steps_in

LAWA, EMA = LawaSettings(k=3, spacing=10, start=0), EmaSettings(decay=0.9, every=1, start=0, warmup=False)
FIELDS = {"live": {"weights": "live"}, **{s.id: row_fields(s) for s in (LAWA, EMA)}}
COSTS = {id: cost(fields) for id, fields in FIELDS.items()}


def evaluations(noise: float, **losses: float) -> dict[str, np.ndarray]:
    """20 batches of 100 targets; what differs between the weights scatters by `noise` from batch to batch."""
    draw = np.random.default_rng(0)
    common = draw.normal(2.0, 0.5, 20)  # shared by all, so that it pairs off
    ids = dict(zip(losses, ("live", LAWA.id, EMA.id), strict=True))
    return {
        ids[name]: np.stack([100 * (common + loss + noise * draw.normal(size=20)), np.full(20, 100.0)], axis=1)
        for name, loss in losses.items()
    }


def test_costs_are_ordered_as_the_work_that_they_are() -> None:
    swa = cost(row_fields(SwaSettings(every=10, start=0)))
    five = cost(row_fields(LawaSettings(k=5, spacing=10, start=0)))
    assert COSTS["live"] < swa < COSTS[LAWA.id] < five < COSTS[EMA.id]
    assert COSTS[LAWA.id] == (0.1, 3) and COSTS[EMA.id] == (1.0, 1)


@pytest.mark.parametrize(
    ("noise", "losses", "expected"),
    [
        (1e-4, (0.0, -0.05, -0.09), EMA.id),  # clearly the best, whatever it costs
        (1e-4, (0.0, -0.05, -0.051), LAWA.id),  # clear, but less than the tolerance
        (0.5, (0.0, -0.05, -0.09), "live"),  # all within a standard error of 0.16
        (0.05, (0.0, -0.09, -0.092), LAWA.id),  # the two are not told apart, live is
        (1e-4, (0.0, 0.02, 0.04), "live"),  # annealed: averages are worse
        (1e-4, (0.0, -0.0005, -0.001), "live"),  # annealed: nothing worth having
    ],
)
def test_the_cheapest_within_the_noise_is_chosen(noise: float, losses: tuple[float, ...], expected: str) -> None:
    sums = evaluations(noise, **dict(zip(("live", "lawa", "ema"), losses, strict=True)))
    assert choose(sums, COSTS, 0.002)[0] == expected


def test_the_gain_is_measured_where_it_was_not_chosen() -> None:
    """Of 200 averages that differ from live by noise alone the best looks better than it is."""
    draw = np.random.default_rng(1)
    sums = {str(i): np.stack([100 + draw.normal(size=40), np.full(40, 100.0)], axis=1) for i in range(200)}
    sums["live"] = np.full((40, 2), 100.0)
    costs = {id: (1.0, 1) for id in sums} | {"live": (2.0, 2)}  # no average is spared for being dear
    chosen, best = choose(sums, costs, 0.0)
    naive = float(sums[best][:, 0].sum() / 4000 - 1)
    honest, half = cross_fitted(sums, costs, 0.0, "live")
    assert chosen != "live" and naive < -2.5 / math.sqrt(40) / 100  # 2.5 standard errors, by chance alone
    assert abs(honest) <= half < 0.5 * abs(naive) * 3 and honest > naive / 2


def test_with_a_clear_gain_cross_fitting_is_the_paired_difference() -> None:
    sums = evaluations(0.01, live=0.0, lawa=-0.05, ema=0.1)
    gain, half = cross_fitted(sums, COSTS, 0.002, "live")
    difference = (sums[LAWA.id] - sums["live"])[:, 0] / 100
    assert gain == pytest.approx(difference.mean(), rel=1e-12)
    assert half == pytest.approx(2.093 * difference.std(ddof=1) / math.sqrt(20), rel=1e-9)


def test_equal_accuracies_go_by_the_loss() -> None:
    tied = [np.tile([loss, 50.0, 40.0], (12, 1)) for loss in (3, 2, 1)]
    by, sums = measured(dict(zip(("live", LAWA.id, "swa"), tied, strict=True)), Classes())
    costs = {"live": (1.0, 1), LAWA.id: (1.0, 1), "swa": (2.0, 1)}
    assert choose(sums, costs, 0.001, by.measure) == (LAWA.id, "swa")


def test_images_are_chosen_by_their_errors() -> None:
    """[batches, 3]: loss, targets, correct. Weights without a finite loss are no candidates."""
    live, better, broken = (np.tile([loss, 50.0, correct], (12, 1)) for loss, correct in ((1, 40), (9, 45), (1, 50)))
    broken[3, 0] = math.nan
    by, sums = measured({"live": live, LAWA.id: better, EMA.id: broken}, Classes())
    assert by.name == "accuracy" and choose(sums, COSTS, 0.001)[0] == LAWA.id and EMA.id not in sums
    at = [
        {"step": s, "split": "val", **FIELDS[id], "loss": 1.0, "accuracy": a, "eval_samples": 600}
        for s, both in ((10, (0.5, 0.4)), (20, (0.6, 0.7)), (30, (0.8, 0.9)))
        for id, a in zip(("live", LAWA.id), both, strict=True)
    ]
    found = judged("run", 30, by, sums, FIELDS, at, [20, 30])
    assert (found.id, found.unit, found.samples) == (LAWA.id, "points of accuracy", 600)
    assert found.gain == pytest.approx(10) and found.half == pytest.approx(0, abs=1e-9) and found.helps_from == 20
    assert found.while_training == (LAWA.id, pytest.approx(10), pytest.approx(10), pytest.approx(10))
    assert found.overrides == ["avg=lawa", "k=3", "spacing=10", "averagers.lawa.start=0"]
    said = "\n".join(lines_of(found))
    assert "(evaluated once, at step 20): lawa-k3-s10 was the best on average, by +10.00 points of accuracy;" in said


def test_where_it_helps_and_what_it_has_to_observe() -> None:
    gains = {20: -0.1, 40: 0.1, 60: -0.01, 80: 0.0, 100: 0.2}
    assert first_helpful(gains) == 80 and first_helpful({20: 0.1, 40: -0.1}) is None
    assert first_observed(FIELDS[LAWA.id], gains, 80) == 60  # the window 60, 70, 80
    assert first_observed(FIELDS[LAWA.id], gains, 20) == 0 and first_observed(FIELDS[EMA.id], gains, 80) == 0
    assert earlier_steps(list(range(10, 101, 10))) == [50, 60, 70, 90] and earlier_steps([5, 10, 15]) == [10]


def test_candidates_are_those_that_the_trajectory_allows() -> None:
    attached = [{"kind": "lawa", "k": 3, "spacing": 10, "start": 0}]
    found = candidates(attached, 10, 203)
    windows = [(c["k"], c["spacing"]) for c in found if c["kind"] == "lawa"]
    assert sorted(windows) == [(3, 10), (3, 20), (3, 40), (5, 10), (5, 20), (10, 10)]  # 80 is stale or too long
    assert [c["start"] for c in found if c["kind"] == "swa"] == [100, 150, 180]
    assert {c["decay"] for c in found if c["kind"] == "ema"} == {"lawa:3", "lawa:5", "lawa:10"}


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At a high rate; the last evaluation is at a step that has no snapshot. Not to be changed but by suggest."""
    folder = tmp_path_factory.mktemp("suggest") / "run"
    asked = tiny("steps=203", "batch.size=2", "lr=constant", "lr.peak=3e-2", "evaluate.every=50")
    done = run(*asked, f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder


def suggest(*arguments: Any) -> Any:
    return run(*map(str, arguments), module="lawa_exp.suggest", warm=True)


def test_a_run(constant: Path) -> None:
    assert 203 not in steps_in(constant / "trajectory")
    done = suggest(constant, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    out = constant / "readouts" / "suggest"
    assert json.loads((out / "suggestion.json").read_text()) == found
    assert found["step"] == 203 and found["samples"] == found["batches"] == 32 and found["by"] == "loss"
    own = rows(out)
    last = {r["weights"]: r["loss"] for r in own if r["step"] == 203}
    assert {"lawa-k3-s10", "ema-d0.9-e1", "swa-e10-from20", "lawa-k3-s20", "wma-k5-s5", "ema-lawa3-e5"} <= last.keys()
    assert len(last) + 1 == found["candidates"] and not any(r["split"] == "test" for r in own)
    live = {r["step"]: r["loss"] for r in rows(constant) if r["split"] == "val" and r["weights"] == "live"}
    assert found["best"] in last and last[found["best"]] == min(last.values()) < live[203]
    chosen = {r["step"]: live[r["step"]] - r["loss"] for r in own if r["weights"] == found["id"]}
    assert found["chosen_gain"] == pytest.approx(chosen[203], abs=1e-6) and first_helpful(chosen) == found["helps_from"]
    # The trainer's own rows of attached averages are the same numbers.
    online = {r["weights"]: r["loss"] for r in rows(constant) if r["step"] == 203 and r["split"] == "val"}
    assert all(last[id] == pytest.approx(loss, rel=1e-5) for id, loss in online.items() if id != "live")
    # The overrides compose to the average that is suggested.
    [(values, overrides)], _ = compose(found["overrides"])
    [part] = read(values, overrides)[0].averagers
    settings = part.resolved(NoAmounts())
    assert settings.id.removesuffix(f"-from{found['start']}") == found["id"].removesuffix(f"-from{found['start']}")
    said = suggest(constant).stdout
    assert f"take {found['id']}" in said and " ".join(found["overrides"]) in said and " ± " in said


def test_an_annealed_run_keeps_its_live_weights(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(*tiny("lr=cosine_to_zero", "steps=120", "lr.peak=1e-3"), f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(suggest(folder, "--json").stdout)
    assert (found["id"], found["overrides"], found["gain"]) == ("live", ["avg=none"], 0)


def test_mistakes_are_one_line(tmp_path: Path, constant: Path) -> None:
    done = suggest(tmp_path)
    assert done.returncode == 2 and "no run there" in done.stderr and done.stderr.count("\n") == 1
    done = run(*tiny("steps=12", "evaluate.samples=8", f"run_dir={tmp_path / 'few'}"), warm=True)
    assert done.returncode == 0, done.stderr
    done = suggest(tmp_path / "few")
    assert done.returncode == 2 and "evaluate.samples: 8" in done.stderr and done.stderr.count("\n") == 1


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    code = "import sys; from lawa_exp.suggest import main\ntry: main(['--help'])\n"
    code += "except SystemExit: pass\nassert not {'torch', 'numpy', 'matplotlib', 'yaml'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "--json" in done.stdout, done.stderr
