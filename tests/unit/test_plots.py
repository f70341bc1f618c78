"""The plots of the gain on runs whose losses are given, and the line to an average in closed form and of a tiny run."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import torch
from helpers import rows as rows_of
from helpers import run, tiny

from lawa_exp.evaluation.score import Scored
from lawa_exp.reproduce import line, plots
from lawa_exp.reproduce.arms import Missing, Run
from lawa_exp.reproduce.curves import ahead
from lawa_exp.reproduce.material import SCHEDULES, Material, gains
from lawa_exp.results.sheets import HEAD, LOOKS, ramp

STEPS, EVERY = 400, 20
NAMES = {**{n: n for n in (*SCHEDULES, "spike_batches", "spike_rate")}, "usual": 0.01, "lawa": "lawa-k2-s10"}
NAMES |= {"wide": "lawa-k2-s40", "swa_early": "swa-e10-from40", "spike_lawa": "lawa-k2-s10"}
FAIR = {**NAMES, "lawa": "lawa-*", "ema": "ema-*", "swa": "swa-*"}
WEIGHTS = {"live": 0.0, "lawa-k2-s10": 0.1, "lawa-k2-s40": 0.2, "ema-d0.9-e1": 0.15, "swa-e10-from40": 0.05}
DRAWN_WITHOUT_SNAPSHOTS = [n for n in plots.PLOTS if n != "line_to_average"]


def rate(name, step):
    final = {"cosine": 0.1, "annealed": 0.0}.get(name, 1.0)
    return final + (1 - final) * (1 + math.cos(math.pi * step / STEPS)) / 2


def made(folder, name, seed, peak=0.01, **config):
    """A run whose averages gain `WEIGHTS` times the current rate's share of the peak, and a spike of single batches."""
    own = folder / f"{name}-{peak}-{seed}"
    own.mkdir(parents=True)
    rows = []
    for step in range(0, STEPS + 1, EVERY):
        for id, gain in WEIGHTS.items():
            row = {"step": step, "split": "val", "weights": id}
            row["loss"] = 2 + 3 * math.exp(-step / 100) + 0.01 * seed - gain * rate(name, step)
            if id.startswith("lawa"):
                row |= {"averager": "lawa", "k": 2, "spacing": int(id.split("-s")[1])}
            rows.append(row)
    noise = np.random.default_rng(seed).normal(scale=0.05, size=STEPS + 1)
    train = [
        {
            "step": s,
            "split": "train",
            "weights": "live",
            "loss": 3 + noise[s] + 5 * (s == 200),
            "lr": peak * rate(name, s),
        }
        for s in range(1, STEPS + 1)
    ]
    (own / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in train))
    final = {} if name not in ("cosine", "annealed") else {"lr.final_ratio": rate(name, STEPS)}
    settings = {"lr.kind": "cosine" if final else "constant", "lr.peak": peak, **final, **config}
    return Run(own, STEPS, seed, settings, rows, [])


@pytest.fixture
def material(tmp_path):
    sets = {n: [made(tmp_path, n, seed, p) for p in (0.01, 0.02) for seed in (0, 1)] for n in SCHEDULES}
    fault = {"fault.at": 200, "fault.length": 10, "fault.factor": 20.0}
    for kind in ("batches", "rate"):
        faulty = {**fault, "fault.kind": kind}
        sets[f"spike_{kind}"] = [made(tmp_path, f"spike_{kind}", seed, **faulty) for seed in (0, 1)]
    return Material(NAMES, FAIR, sets.__getitem__, tmp_path / "plots")


def nothing(name):
    raise Missing(f"no set {name}")


@pytest.mark.parametrize("name", DRAWN_WITHOUT_SNAPSHOTS)
def test_each_is_drawn_with_units(name, material):
    sheet = plots.PLOTS[name].draw(material)
    columns = len({round(p.get_position().x0, 3) for p in sheet.panels})
    for i, panel in enumerate(sheet.panels):
        assert panel.lines and panel.get_title()
        assert i < len(sheet.panels) - columns or "(" in panel.get_xlabel()
        assert i % columns or "(" in panel.get_ylabel()
    assert sheet.figure.legends and all(len(row) == len(HEAD) for row in sheet.rows)


@pytest.mark.parametrize("name", plots.PLOTS)
def test_missing_runs_give_none(name, tmp_path):
    assert plots.PLOTS[name].draw(Material(NAMES, FAIR, nothing, tmp_path)) is None
    assert plots.PLOTS[name].draw(Material({}, {}, nothing, tmp_path)) is None


def test_numbers_are_those_of_the_runs(material):
    """The gain is 0.1 of the current share of the peak, so at the end 0.1, 0.01 and 0, where nothing is drawn."""
    rows = plots.PLOTS["gain_against_progress"].draw(material).rows
    ends = {r[0]: r[3:] for r in rows if r[1] == "LAWA as published" and r[2] == 100}
    assert ends["constant rate"] == [pytest.approx(0.1), pytest.approx(0, abs=1e-9), 2]
    assert ends["cosine to 10% of the peak"][0] == pytest.approx(0.01)
    assert "cosine to zero" not in ends
    rows = plots.PLOTS["as_rate_anneals"].draw(material).rows
    by_rate = [(r[2], r[3]) for r in rows if r[0] == "LAWA as published, by rate" and r[1] == "cosine to zero"]
    assert len(by_rate) > 5 and all(gain == pytest.approx(share / 1000, abs=1e-9) for share, gain in by_rate)
    rows = plots.PLOTS["loss_against_step"].draw(material).rows
    (last,) = (r for r in rows if r[:3] == ["constant rate", "live", STEPS])
    assert last[3] == pytest.approx(2 + 3 * math.exp(-4) + 0.005) and last[4] == pytest.approx(0.01 / math.sqrt(2))


def test_gain_of_one_snapshot_is_none(material):
    (first, *_) = material.at("constant")
    assert gains([first], "live") == {} and max(gains([first], "lawa-k2-s10")) == STEPS


def test_steps_ahead():
    live, average = [(0, 10.0), (100, 0.0)], [(0, 8.0), (80, 0.0)]
    assert ahead(live, average, 4.0) == (60 - 40, True)
    assert ahead([(0, 10.0), (100, 5.0)], average, 4.0) == (100 - 40, False)  # live never gets there
    assert ahead(live, average, -1.0) is None and ahead(live, average, 9.0) is None


def test_lines_are_told_apart_in_grey():
    looks = [*LOOKS.values()]
    assert len({(k.line, k.marker) for k in looks}) == len(looks)
    for n in (3, 5):
        steps = [grey(ramp(i, n).colour) for i in range(n)]
        assert min(b - a for a, b in itertools.pairwise(steps)) > 0.1
    greys = sorted(grey(k.colour) for k in looks)
    assert min(b - a for a, b in itertools.pairwise(greys)) > 0.05


def grey(colour):
    from matplotlib.colors import to_rgb

    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def test_files_and_page(material):
    captions = plots.write_plots(material.cache, material, ["early", "across_faults"])
    assert set(captions) == {"early", "across_faults"} and "standard deviation" in captions["early"]
    assert (material.cache / "early.png").read_bytes()[:4] == b"\x89PNG"
    with (material.cache / "early.csv").open() as file:
        assert next(csv.reader(file)) == HEAD and len(list(file)) > 10
    (mine,) = plots.section(captions, ["spike_rate"], material)
    assert "plots/across_faults.png" in mine


def test_line_of_a_quadratic():
    """|w|^2 / 2 from (2, 0) to (0, 0) is 2 (1 - alpha)^2; the distance is 2."""

    def score(weights, split, samples, bn):
        return Scored({"loss": float(weights["w"].square().sum()) / 2 + float(weights["n"])}, None)

    live = {"w": torch.tensor([2.0, 0.0]), "n": torch.tensor(5)}
    average = {"w": torch.tensor([0.0, 0.0]), "n": torch.tensor(1)}
    found = line.losses_on_line(score, live, average, frozenset({"w"}), 10, "lawa")
    assert found == pytest.approx([2 * (1 - a) ** 2 + 1 for a in line.ALPHAS])
    assert line.distances([live, average, live], frozenset({"w"})) == [[0, 2, 0], [2, 0, 2], [0, 2, 0]]


def test_line_of_a_tiny_run(tmp_path):
    id = "lawa-k2-s2"
    words = ["steps=8", "trajectory.every=2", "k=2", "spacing=2", f"run_dir={tmp_path / 'a'}"]
    done = run(*tiny(*words))
    assert done.returncode == 0, done.stderr
    (found,) = line.lines([tmp_path / "a"], id, tmp_path / "line.json")
    rows = {(r["step"], r["weights"]): r["loss"] for r in rows_of(tmp_path / "a") if r["split"] == "val"}
    at = dict(zip(found.alphas, found.losses, strict=True))
    assert at[0.0] == pytest.approx(rows[8, "live"], rel=1e-6) and at[1.0] == pytest.approx(rows[8, id], rel=1e-6)
    assert found.steps == (2, 4, 6, 8) and found.distances[0][3] == found.distances[3][0] > found.distances[2][3] > 0
    assert found.apart == pytest.approx(found.distances[2][3] / 2, rel=1e-3)  # of (6, 8) the mean
    (tmp_path / "a" / "config.yaml").unlink()
    (again,) = line.lines([tmp_path / "a"], id, tmp_path / "line.json")  # from what was kept
    assert again.losses == pytest.approx(found.losses)
    assert line.lines([tmp_path / "b"], id, tmp_path / "line.json") == []
