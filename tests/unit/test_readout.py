"""Read-outs of real runs: one pass, nothing evaluated twice, the choice and its noise, other people's folders."""

import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import lines_of, rows, run, tiny

from lawa_exp.averaging import LawaSettings, WmaSettings, row_fields
from lawa_exp.averaging.needs import problem_with
from lawa_exp.convert.checkpoints import read_checkpoint
from lawa_exp.evaluation.read_out import ReadOut, evaluations, live_rows, read_out
from lawa_exp.evaluation.replay import Replay, Snapshots, read_snapshot
from lawa_exp.evaluation.score import OnModel
from lawa_exp.formats.names import step_in
from lawa_exp.formats.steps import find_checkpoints
from lawa_exp.readout.attached import Rebuilt, tracked_widths
from lawa_exp.readout.comparison import Comparison, compare
from lawa_exp.readout.heatmap import Cell, compared_at, compared_line, differences, draw_panel
from lawa_exp.readout.noise import paired, scatter
from lawa_exp.readout.report import Test as Outcome
from lawa_exp.readout.report import chosen_line
from lawa_exp.results.figures import pyplot
from lawa_exp.results.statistics import paired_difference
from lawa_exp.runs.choices import config_from
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.rows import averager_ids
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.safetensors import map_tensors, read_tensors
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError

# Snapshots: 5, 10, ... 60. Evaluations: 10, 20, ... 60, in 4 batches of 8 samples. Widths of power_ema: three.
ASKED = tiny("evaluate.every=10", "evaluate.batch_size=8", "avg=[lawa,power_ema]", "k=2")
ASKED = [o for o in ASKED if not o.startswith(("averagers.ema", "averagers.swa"))]
WIDTHS = "averagers.power_ema.sigma_rel=[0.05,0.1,0.07]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that tracked three widths. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run(*ASKED, WIDTHS, f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def several(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A read-out of two kinds, three k and two spacings, and what it printed. Not to be changed."""
    out = tmp_path_factory.mktemp("several")
    flags = ["--avg", "lawa,wma,ema", "--k", "1,2,20", "--spacing", "5,10", "--decay", "0.5", "--out", str(out)]
    done = run(str(trained), *flags, module="lawa_exp.readout", warm=True)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def readout(*arguments: Any, **options: Any) -> Any:
    return run(*map(str, arguments), module="lawa_exp.readout", **{"warm": True, **options})


def losses(found: list[dict[str, Any]], weights: str, split: str = "val") -> dict[int, float]:
    return {r["step"]: r["loss"] for r in found if r["weights"] == weights and r["split"] == split}


def test_one_pass_reads_every_file_once_and_evaluates_no_weights_twice(trained: Path) -> None:
    device = torch.device("cpu")
    written = RunDir(trained).read_config()
    assert written
    config = config_from(written)
    score = OnModel(config, config.dataset.open(config.model.context), device, Ranks())
    files: Counter[Path] = Counter()
    weights: Counter[str] = Counter()

    def read(path: Path) -> dict[str, torch.Tensor]:
        files[path] += 1
        return read_snapshot(path)

    def counted(tensors: dict[str, torch.Tensor], *rest: Any) -> Any:
        weights[hashlib.sha256(b"".join(tensors[n].numpy().tobytes() for n in sorted(tensors))).hexdigest()] += 1
        return score(tensors, *rest)

    settings = [cls(k, spacing, 0) for cls in (LawaSettings, WmaSettings) for k in (1, 2, 3) for spacing in (5, 10, 20)]
    snapshots = Snapshots(steps_in(trained / "trajectory"), read)
    replay = Replay(settings, score.averaged, snapshots, device, [60])
    live = live_rows(rows(trained))
    found = read_out(replay, replay.averages, counted, live, lambda _: None)
    assert set(files) == set(steps_in(trained / "trajectory").values()) and set(files.values()) == {1}
    assert set(weights.values()) == {1}
    # The live weights once; k=1 is they, or they as they were. Of the rest there are 2 kinds, new at each of 6 steps
    # at spacing 5 and 10, as soon as they are defined, and at steps 40 and 60 at spacing 20.
    assert sum(weights.values()) == 2 * (6 + 5 + 5 + 4 + 2 + 1) + 1 == evaluations(replay, replay.averages, live)
    assert set(found.sums) == {"live", *(s.id for s in settings)}
    one = losses(found.rows, "lawa-k1-s20")
    known = losses(rows(trained), "live")
    assert one == {20: known[20], 30: known[20], 40: known[40], 50: known[40], 60: known[60]}


def test_table_figures_and_the_report_on_test(several: tuple[Path, str], trained: Path) -> None:
    import matplotlib.image

    out, printed = several
    assert {p.name for p in out.glob("[!.]*")} == {"metrics.jsonl", "summary.md", "heatmap.png", "curves.png"}
    for name in ("heatmap.png", "curves.png"):
        picture = matplotlib.image.imread(out / name)
        assert min(picture.shape[:2]) > 300 and picture.std() > 0.05, "an empty picture"
    found = rows(out)
    ids = [f"{kind}-k{k}-s{s}" for kind in ("lawa", "wma") for k in (1, 2) for s in (5, 10)] + ["ema-d0.5-e5"]
    assert list(dict.fromkeys(r["weights"] for r in found if r["step"] == 60 and r["split"] == "val")) == ids
    summary = (out / "summary.md").read_text()
    lowest = min(ids, key=lambda id: losses(found, id)[60])
    live = losses(rows(trained), "live")[60]
    assert live == losses(found, lowest)[60]  # k=1: no average is lower, so none is called the best
    for id in ids:
        line = next(line for line in summary.splitlines() if line.split("|")[1:2] and line.split("|")[1].strip() == id)
        loss, difference, to_best = (cell.strip() for cell in line.split("|")[2:5])
        assert loss == f"{losses(found, id)[60]:.4f}"
        assert difference.startswith(f"{losses(found, id)[60] - live:+.4f} ± ")
        assert to_best.startswith(f"{losses(found, id)[60] - live:+.4f} ± ")
    assert re.search(r"\| +live \| +\d\.\d+ \| +\| +the best \|", summary)
    tested = [r for r in found if r["split"] == "test"]
    assert [r["weights"] for r in tested] == ["live", lowest] and {r["step"] for r in tested} == {60}
    training = "readouts/test/metrics.jsonl"
    assert lines_of(out, "live", split="test") == lines_of(trained, "live", name=training, split="test") != []
    for text in (summary, printed):
        assert f"Chosen on val (step 60, of 9 averages): live; no average is lower, the lowest is {lowest}, +" in text
        assert f"On test (32 samples): {tested[1]['loss']:.4f}, live {tested[0]['loss']:.4f}" in text
        assert "paired, 4 batches" in text and "what another seed would change is not in it" in text


def windows(spacings: tuple[int, ...], last: int) -> tuple[Comparison, list[dict[str, Any]]]:
    """Made-up curves: live loses 0.01 a step, an average is 0.5 under the live weights of its newest snapshot."""
    steps = range(10, last + 1, 10)
    found = [{"step": s, "split": "val", "weights": "live", "loss": 9 - s / 100} for s in steps]
    for settings in (LawaSettings(k, spacing, 0) for k in (1, 2) for spacing in spacings):
        defined = [s for s in steps if len(settings.needed(s)) == settings.k]
        at = [{"step": s, "loss": 8.5 - settings.needed(s)[-1] / 100} for s in defined]
        found += [{"split": "val", **row_fields(settings), **row} for row in at]
    return compare(ReadOut(found, last, {}), found, averager_ids(found)), found


def test_heat_map_compares_windows_where_none_is_stale() -> None:
    f, found = windows((20, 30), 140)
    assert compared_at(f, found) == 120
    cells = differences(f, found, 120).values()
    assert {(cell.text, cell.below, cell.unclear) for cell in cells} == {("-0.5000", "", False)}
    assert [cell.value for cell in cells] == pytest.approx([-0.5] * 4)
    line = "after step 140 the newest snapshot is an earlier one at spacing 30 (120)."
    assert compared_line(f, found) == (
        f"Heat map: losses at step 120, the last evaluation at which all windows are new; {line}"
    )
    assert {line.at for line in f.lines} == {80, 90}  # half-way, with the weights of that step
    f, found = windows((20, 50), 140)  # 100, at which k=2 has its first average of spacing 50
    assert compared_at(f, found) == 100
    f, found = windows((20, 50), 90)
    assert compared_at(f, found) is None
    gaps = differences(f, found, 90)
    assert {id: cell.below for id, cell in gaps.items()} == {
        "lawa-k1-s20": "± 0.0000, of step 80",
        "lawa-k1-s50": "± 0.0000, of step 50",
        "lawa-k2-s20": "± 0.0000, of step 80",
    }
    assert gaps["lawa-k1-s50"].value == pytest.approx(-0.1)
    assert "at spacing 20 (80), 50 (50); at no evaluation are all windows new" in compared_line(f, found)
    f, found = windows((20, 50), 200)
    assert compared_at(f, found) == 200 and compared_line(f, found) == ""


def test_heat_map_colours_by_size_and_marks_what_could_be_chance() -> None:
    f, found = windows((20, 30), 120)
    noisy = replace(f, lines=[replace(line, half=0.6 if "k1" in line.id else 0.4) for line in f.lines])
    assert [cell.unclear for cell in differences(noisy, found, 120).values()] == [True, True, False, False]
    axes = pyplot().subplots()[1]
    cells = {(20, 1): Cell.of(-0.4, 0.3), (30, 1): Cell.of(-0.1, 0.1), (40, 1): Cell.of(0.4, math.nan)}
    image = draw_panel(axes, cells, [20, 30, 40], [1], 0.4, "RdBu_r", [])
    better, little, worse, none = image.to_rgba(np.array([-0.4, -0.1, 0.4, 0.0]))[:, :3]
    assert better[2] > 2 * better[0] and worse[0] > 2 * worse[2] and min(none) > 0.95
    assert better[0] < little[0] < none[0], "not by size"
    assert [patch.get_hatch() is not None and patch.get_x() == 0.5 for patch in axes.patches] == [True]
    pyplot().close(axes.figure)


def test_choice_and_test_say_in_words_whether_they_are_significant() -> None:
    f, _ = windows((20, 30), 120)
    best = next(line for line in f.lines if line.id == f.best)
    said = []
    for difference, half in ((-0.5, 0.6), (-0.5, 0.4), (0.5, 0.4), (-0.5, math.nan)):
        lines = [replace(best, difference=difference, half=half)]
        test = Outcome(f.best, 3 + difference, 3.0, half, 8)
        parts = chosen_line(replace(f, lines=lines), test, "").split(f"{difference:+.4f}")[1:]
        said.append({part.partition("against live: ")[2].partition(".")[0] for part in parts})
    assert said == [
        {"inconclusive"},
        {"significantly better"},
        {"significantly worse"},
        {"no interval, so not known whether it is significant"},
    ]
    same = Outcome(f.best, best.loss, f.live, best.half, 8)  # val.bin serves as both
    assert "The numbers are those of val: the split is the same" in chosen_line(f, same, "")


def test_what_cannot_be_had_and_what_an_ema_here_is_are_said(several: tuple[Path, str], trained: Path) -> None:
    _, printed = several
    last = printed.strip().splitlines()[-4:]
    assert [line.split(":")[1].strip() for line in last] == [f"{k}-k20-s{s}" for k in ("lawa", "wma") for s in (5, 10)]
    assert "needs 20 snapshots, and there are 12 for it up to step 60" in last[0]
    assert "ema: observing the weights every 5 steps" in printed
    none = readout(trained, "--avg", "ema", "--every", "1", "--name", "none")
    assert none.returncode == 2 and len(none.stderr.splitlines()) == 1
    assert "none of these averages can be had: ema-d0.99-e1: it needs the weights of 60 steps" in none.stderr
    assert none.stderr.endswith("rerun=true, or ask for --every 5, which can be had\n")
    assert not (trained / "readouts" / "none").exists()


def test_a_spacing_that_can_be_had_is_offered(trained: Path, theirs: Path) -> None:
    refused = readout(trained, "--k", "2", "--spacing", "7", "--name", "none")  # 49 and 56
    assert refused.returncode == 2
    assert "2 steps, of which 2 were not saved" in refused.stderr and "ask for --spacing 10, which" in refused.stderr
    refused = readout(theirs, "--evaluate", "builtins:len", "--k", "2", "--spacing", "11")  # 44 and 55
    assert refused.returncode == 2
    assert "no checkpoint of step 44 (1 of 2 missing), or ask for --spacing 15, which" in refused.stderr
    one = problem_with(LawaSettings(2, 11, 0), {55, 60}, 60)
    assert one and "of which 1 was not saved (the first: step 44)" in one
    assert "--spacing" not in readout(trained, "--k", "2", "--spacing", "31").stderr, "35 gives one snapshot"


def test_where_an_swa_begins_is_said(theirs: Path, tmp_path: Path) -> None:
    said = "swa: the mean of all snapshots from the first on; one attached to a training begins at 75% of the horizon"
    asked = [theirs, "--evaluate", "builtins:len", "--avg", "swa"]
    default = readout(*asked, "--out", tmp_path / "all")
    assert default.returncode == 0 and said in default.stdout and said in (tmp_path / "all/summary.md").read_text()
    assert said not in readout(*asked, "--start", "0", "--out", tmp_path / "told").stdout
    averaged = [
        run(
            "--trajectory",
            str(theirs),
            "--method",
            "swa",
            "--at",
            "60",
            *start,
            "--out",
            str(tmp_path / f"{i}"),
            module="lawa_exp.average",
            warm=True,
        )
        for i, start in enumerate(([], ["--start", "0"]))
    ]
    assert [said in done.stdout for done in averaged] == [True, False]


def test_online_averages_are_shown_beside(trained: Path, tmp_path: Path) -> None:
    """A width that was tracked at every step is had from the training itself, as it was."""
    done = readout(trained, "--avg", "power_ema,lawa", "--k", "2", "--sigma_rel", "0.05", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    id = "power_ema-w0.05-e1"
    assert f"{id} is the one that was attached" in done.stdout
    assert lines_of(tmp_path, id) == lines_of(trained, id) != []


def test_last_snapshot_that_is_not_there(trained: Path, tmp_path: Path) -> None:
    """Without the live weights after the last step their rows do; no noise is told, and no test."""
    folder = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(folder / "trajectory" / "step_00000060")
    done = readout(folder, "--k", "2", "--spacing", "25", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {r["split"] for r in rows(tmp_path / "out")} == {"val"}
    assert "Not tested: the snapshot of step 60 is not there" in done.stdout
    assert "Noise: not known (no losses of single batches, and too few evaluations" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.strip("| ").startswith("lawa-k2-s25"))
    loss, live = losses(rows(tmp_path / "out"), "lawa-k2-s25")[60], losses(rows(trained), "live")[60]
    assert line.split()[3:6:2] == [f"{loss:.4f}", f"{loss - live:+.4f}"] and "±" not in line


def test_rebuilt_width_is_the_one_that_was_not_tracked(trained: Path, tmp_path: Path) -> None:
    """Against the same width tracked directly, which the copy has lost."""
    folder = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(folder / "averages" / "power_ema-w0.07-e1")
    done = readout(folder, "--avg", "power_ema", "--sigma_rel", "0.07", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    id = "power_ema-w0.07-e1-rebuilt"
    found = [r for r in rows(tmp_path / "out") if r["split"] == "val"]
    assert {r["weights"] for r in found} == {id}
    assert found[-1]["rebuilt_from"] == ["power_ema-w0.05-e1", "power_ema-w0.1-e1"] and found[-1]["sigma_rel"] == 0.07
    assert f"{id} was not tracked: it is rebuilt from power_ema-w0.05-e1 and power_ema-w0.1-e1" in done.stdout

    run_dir = RunDir(folder)
    config = run_dir.read_config()
    assert config
    widths = tracked_widths(run_dir, config_from(config).averagers)
    names = frozenset(read_snapshot(folder / "trajectory" / "step_00000060"))
    rebuilt = Rebuilt(0.07, widths, run_dir, names)
    exact, low, high = (
        {step: read_snapshot(path) for step, path in steps_in(trained / "averages" / f"power_ema-w{w}-e1").items()}
        for w in (0.07, 0.05, 0.1)
    )
    online = losses(rows(trained), "power_ema-w0.07-e1")
    for step in (40, 50, 60):
        between = distance(low[step], high[step])
        assert distance(rebuilt.weights(step), exact[step]) < 0.1 * between
        assert distance(low[step], exact[step]) > 0.3 * between
        assert losses(found, id)[step] == pytest.approx(online[step], abs=2e-3)
    assert 0 < rebuilt.error(60) < 0.1


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((one[n].double() - other[n].double()).square().sum()) for n in one))


@pytest.fixture(scope="module")
def theirs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trajectory as nanoGPT would have saved it: compiled names, the tied weight twice, a mask that is a buffer."""
    folder = tmp_path_factory.mktemp("theirs") / "out"
    folder.mkdir()
    for step, path in steps_in(trained / "trajectory").items():
        tensors = read_tensors(path / "model.safetensors")
        tensors |= {"lm_head.weight": tensors["transformer.wte.weight"], "transformer.h.0.attn.bias": torch.ones(1, 8)}
        saved = {"model": {f"_orig_mod.{n}": t for n, t in tensors.items()}, "iter_num": step, "config": {"lr": 1e-3}}
        torch.save(saved, folder / f"ckpt_{step}.pt")
    (folder / "log.txt").write_text("step 5: loss 9.9")
    return folder


def test_folder_of_checkpoints_gives_the_losses_of_our_run(
    theirs: Path, several: tuple[Path, str], trained: Path
) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in theirs.iterdir()}
    settings = [o for o in ASKED if o.startswith(("model.", "evaluate.", "trainer.threads"))]
    out = theirs.parent / "readout"
    flags = ["--model", "gpt_tiny", "--dataset", "pydocs", "--avg", "lawa,ema", "--k", "2", "--spacing", "5,10"]
    done = readout(theirs, *flags, "--decay", "0.5", "--out", out, *settings)
    assert done.returncode == 0, done.stderr
    found, ours = rows(out), rows(several[0])
    assert list(losses(found, "live")) == list(range(5, 61, 5)), "live weights are evaluated at every checkpoint"
    assert losses(found, "live").items() >= {s: v for s, v in losses(rows(trained), "live").items() if s}.items()
    for id in ("lawa-k2-s5", "lawa-k2-s10", "ema-d0.5-e5"):
        assert losses(found, id).items() >= losses(ours, id).items() != {}.items()
    assert losses(found, "live", "test") == losses(ours, "live", "test") != {}
    assert "transformer.h.0.attn.bias" in (out / "summary.md").read_text(), "what was left out is said"
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in theirs.iterdir()} == before


def test_folder_of_checkpoints_with_a_function(theirs: Path, trained: Path, tmp_path: Path) -> None:
    """Called with the weights by name; its losses of single samples give the noise."""
    (tmp_path / "mine.py").write_text(
        "def rms(tensors):\n"
        "    each = [float(t.double().square().mean().sqrt()) for n, t in sorted(tensors.items()) if 'mlp' in n]\n"
        "    return {'loss': sum(each) / len(each), 'losses': each}\n"
        "def alone(tensors):\n"
        "    return tensors['transformer.wte.weight'].double().square().mean()\n"
    )
    done = readout(theirs, "--evaluate", "mine:rms", "--k", "2", cwd=tmp_path, warm=False)  # a Python of its own
    assert done.returncode == 0, done.stderr
    out = tmp_path / "readouts" / "out-lawa-k2-s5"
    means = {}
    for step in (10, 60):
        pair = [map_tensors(trained / "trajectory" / f"step_{s:08d}" / "model.safetensors") for s in (step - 5, step)]
        mean = {
            n: torch.stack([pair[0][n], pair[1][n]]).double().mean(0).float() for n in sorted(pair[0]) if "mlp" in n
        }
        means[step] = np.mean([float(t.double().square().mean().sqrt()) for t in mean.values()])
    found = losses(rows(out), "lawa-k2-s5")
    assert list(found) == list(range(10, 61, 5))
    assert {s: found[s] for s in means} == pytest.approx(means, rel=1e-12)
    assert "Not tested: --evaluate gives one loss" in done.stdout and "paired, 2 batches" in done.stdout
    ours = readout(trained, "--evaluate", "mine:alone", "--k", "2", "--out", tmp_path / "own", cwd=tmp_path)
    assert ours.returncode == 0, ours.stderr
    assert {r["step"] for r in rows(tmp_path / "own") if r["weights"] == "live"} == set(range(5, 61, 5))


def test_threads_of_a_read_out(theirs: Path, trained: Path, tmp_path: Path) -> None:
    """Those of the run, or as asked; a function is called with as many."""
    (tmp_path / "mine.py").write_text("import torch\ndef threads(tensors):\n    return torch.get_num_threads()\n")
    asked = [str(theirs), "--evaluate", "mine:threads", "--k", "1", "--out", tmp_path / "out", "--threads", "3"]
    done = readout(*asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(losses(rows(tmp_path / "out"), "live").values()) == {3}
    refused = readout(trained, "--threads", "0")
    assert refused.returncode == 2 and "--threads: 0: expected a whole number from 1 to 1,024" in refused.stderr


FAILING = """
calls = []
def helper(tensors):
    calls.append(1)
    if len(calls) == 4:
        raise KeyError("no weight of that name")
    return 1.0
def raises(tensors):
    return helper(tensors)
def nan(tensors):
    calls.append(1)
    return float("nan") if len(calls) > 1 else 1.0
"""


def test_function_that_fails_is_told_at_once(theirs: Path, tmp_path: Path) -> None:
    """Its own lines of the traceback, then one that names weights and step; not a number: at the first such step."""
    (tmp_path / "mine.py").write_text(FAILING)
    asked = ["--k", "2", "--out", tmp_path / "out"]  # evaluated: live 5, live 10, lawa 10, live 15
    raised, nan = (readout(theirs, "--evaluate", f"mine:{name}", *asked, cwd=tmp_path) for name in ("raises", "nan"))
    assert raised.returncode == nan.returncode == 1
    lines = raised.stderr.splitlines()
    told = "error: --evaluate=mine:raises raised KeyError: 'no weight of that name' (weights live, step 15)"
    assert lines[-1] == told and "lawa_exp" not in raised.stderr
    assert [line.split(", in ")[1] for line in lines if line.startswith("  File")] == ["raises", "helper"]
    assert len(nan.stderr.splitlines()) == 1 and "the live weights after step 10 is nan" in nan.stderr
    assert not (tmp_path / "out").exists()


STOPPED = """
import os, signal
calls = []
def stop(tensors):
    calls.append(1)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGTERM)
    return float(len(calls))
"""


def test_the_flags_of_steps_are_those_of_average(theirs: Path, tmp_path: Path) -> None:
    asked = [theirs, "--evaluate", "builtins:len", "--k", "2"]
    done = readout(*asked, "--step-from", r"ckpt_(\d0)", "--verbose", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert r"read 6 checkpoints: step 10 (ckpt_10.pt) to step 60 (ckpt_60.pt), by --step-from=ckpt_(\d0)" in done.stdout
    assert r"left out: ckpt_15.pt (no match of --step-from=ckpt_(\d0)); " in (tmp_path / "out/summary.md").read_text()
    refused = readout(*asked, "--step-from", "ckpt", "--out", tmp_path / "x")
    assert refused.returncode == 2 and "expected one group" in refused.stderr


def test_stop_between_two_evaluations_of_a_step(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STOPPED)
    asked = ["--evaluate", "mine:stop", "--k", "1,2,3", "--spacing", "20", "--out", tmp_path / "out"]
    done = readout(theirs, *asked, cwd=tmp_path)
    assert done.returncode == 1
    # Live at 12 steps (k=1 is one of them), k=2 at steps 40 and 60, k=3 at step 60; no test
    read, said, *lines = done.stdout.splitlines()
    assert read == "read 12 checkpoints: step 5 (ckpt_5.pt) to step 60 (ckpt_60.pt), by iter_num in the files"
    assert said == "3 averages at 12 steps: 15 evaluations on val"
    assert lines[-1].startswith("step      35"), "not after the second weights of step 40"
    assert "SIGTERM: stopping after this evaluation" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: stopped at step 40: nothing was written")


NAMES = {
    "ckpt_1000.pt": 1000,
    "step_00001000": 1000,
    "checkpoint-500": 500,
    "checkpoint_3_1000.pt": 1000,
    "epoch=3-step=1000.ckpt": 1000,
    "step=1000-loss=2.34.ckpt": 1000,
    "iter7_lr0.01.pth": 7,
    "model.pt": None,
    "epoch=2-val_loss=0.12.ckpt": 2,
    "epoch=12-val_loss=3.ckpt": 12,
    "epoch=3-step=1000-val_acc=97-v1.ckpt": 1000,
    "epoch=03-top1_acc_95.ckpt": 3,
    "val_loss=0.12.ckpt": None,
    "lr=3-n=4.ckpt": 4,
    "lr=3-m=4.ckpt": None,
    "last-v1.ckpt": None,
    "checkpoint.best_loss_4.1234.pt": None,
    "checkpoint_best.pt": None,
    "checkpoint_1_500.pt": 500,
    "checkpoint12.pt": 12,
    "checkpoint-2.pth.tar": 2,
    "model_best.pth.tar": None,
    "ckpt_600.pt": 600,
    "model_0005.pth": 5,
    "step1000": 1000,
    "step1000-tokens4B": 1000,
    "global_step_2000_seed1.pt": 2000,
    "iteration_7_20240501.pt": 7,
    "best_acc95_epoch_4.pth": 4,
    "epoch_4_acc_95.pth": 4,
    "epoch-3.pt": 3,
    "ep1-ba100-rank0.pt": 100,
    "5_resnet18.pth": 5,
    "model_fp16.safetensors": None,
    "1000.pt": 1000,
    "0.12.ckpt": None,
    "seed1-1000.pt": 1000,
    "seed_1_1000.pt": 1000,
    "run_2_seed1_1000.pt": 1000,
    "ckpt_1000_seed_1.pt": 1000,
    "bs64_10.pt": 10,
    "lr0.1_1000.pt": 1000,
    "lr_0.1_1000.pt": 1000,
    "1000_lr1e-3.pt": 1000,
    "fp16_1000.pt": 1000,
    "v2_1000.pt": 1000,
    "gpu8_100.pt": 100,
    "fold_2.pt": None,
    "top1_10.pt": 10,
    "epoch_3_top1_95.pt": 3,
    "epoch3_it300.pt": 300,
    "it=300.ckpt": 300,
    "e=3.ckpt": 3,
    "val_acc=95-e=3.ckpt": 3,
    "n=5.ckpt": 5,
    "round=7.ckpt": 7,
    "t=500.ckpt": 500,
    "seed=1.ckpt": None,
    "val_loss_3-seed1.ckpt": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_step_in_a_name(name: str) -> None:
    assert step_in(name) == NAMES[name]


def test_layouts_that_are_read(trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = read_tensors(trained / "trajectory" / "step_00000060" / "model.safetensors")
    (tmp_path / "step_1").mkdir()
    save_file(tensors, tmp_path / "step_1" / "model.safetensors")
    (tmp_path / "step_2").mkdir()
    torch.save(tensors, tmp_path / "step_2" / "weights.pt")
    torch.save({"state_dict": {f"module.{n}": t for n, t in tensors.items()}, "epoch": 3}, tmp_path / "step_3.pth")
    (tmp_path / "step_4").mkdir()
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save_file(half, tmp_path / "step_4" / file)
    index = {"weight_map": {n: file for file, half in zip(files, halves, strict=True) for n in half}}
    (tmp_path / "step_4" / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(tensors, tmp_path / "ckpt_best.pt")  # without a number: passed over
    (tmp_path / "tokenizer-5").mkdir()
    found = find_checkpoints(tmp_path, "RUN").paths
    assert list(found) == [1, 2, 3, 4]
    for path in found.values():
        read = read_checkpoint(path)
        assert read.keys() == tensors.keys() and all(torch.equal(read[n], t) for n, t in tensors.items()), path
    torch.save(tensors, tmp_path / "step-3.bin")
    with pytest.raises(UserError, match=r"step-3\.bin and step_3\.pth are both of step 3"):
        find_checkpoints(tmp_path, "RUN")


MISTAKES = {
    "no such run": (["nowhere"], "no such file or folder"),
    "a folder without an evaluation": (["{theirs}"], "needs --data, --model and --dataset, or --evaluate"),
    "a model alone": (["{theirs}", "--model", "gpt_tiny"], "give --data, --model and --dataset"),
    "another model": (
        ["{theirs}", "--model", "gpt_tiny", "--dataset", "pydocs", "trainer.threads=1"],
        "does not fit --model=gpt_tiny",
    ),
    "results among the checkpoints": (["{theirs}", "--evaluate", "math:sqrt", "--out", "{theirs}/x"], "inside RUN"),
    "no such function": (
        ["{theirs}", "--evaluate", "math:nothing"],
        "--evaluate=math:nothing: expected package.module",
    ),
    "no such evaluator": (
        ["{trained}", "--evaluate", "calibrate"],
        "--evaluate=calibrate: did you mean calibration? choices: calibration, perplexity, zeroshot, or package.module",
    ),
    "a flag of another evaluator": (
        ["{trained}", "--evaluate", "perplexity", "--tasks", "arc_easy"],
        "--tasks is for --evaluate zeroshot",
    ),
    "no such view": (["{trained}", "--view", "int4"], "--view=int4: did you mean int8? choices: bfloat16, int8"),
    "settings of a run": (["{trained}", "model.width=4"], "a run has its own"),
    "an epoch without data": (["{theirs}", "--evaluate", "math:sqrt", "--spacing", "1epoch"], "--spacing=1epoch"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake: str, theirs: Path, trained: Path) -> None:
    arguments, message = MISTAKES[mistake]
    refused = readout(*(a.format(theirs=theirs, trained=trained) for a in arguments))
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1, refused.stderr
    assert message in refused.stderr


def test_snapshot_that_is_cut_short_is_named(theirs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(theirs, tmp_path / "cut")
    os.truncate(folder / "ckpt_30.pt", 50_000)
    done = readout(folder, "--evaluate", "builtins:len")
    assert done.returncode == 0 and "left out, as it cannot be read: ckpt_30.pt" in done.stdout, done.stdout


def test_paired_noise_is_students_for_equal_batches_and_weighs_unequal_ones() -> None:
    rng = np.random.default_rng(0)
    live = np.stack([rng.normal(300, 20, 9), np.full(9, 100.0)], 1)
    average = live - np.stack([rng.normal(5, 2, 9), np.zeros(9)], 1)
    assert paired(average, live) == pytest.approx(
        paired_difference(*((a[:, 0] / 100).tolist() for a in (average, live)))
    )
    sizes = np.array([[100.0], [50.0], [10.0]])  # the same difference in every batch: no noise, whatever their sizes
    assert paired(np.hstack([2 * sizes, sizes]), np.hstack([3 * sizes, sizes])) == pytest.approx((-1.0, 0.0))
    assert math.isnan(paired(average[:1], live[:1])[1])


def test_scatter_is_what_is_not_trend() -> None:
    steps = np.cumsum(np.random.default_rng(1).integers(1, 50, 4000)).tolist()
    line = [(s, 5 - 1e-5 * s) for s in steps]
    assert scatter(line) == pytest.approx(0, abs=1e-12)
    noise = np.random.default_rng(2).normal(0, 0.1, len(steps))
    assert scatter([(s, v + e) for (s, v), e in zip(line, noise, strict=True)]) == pytest.approx(0.1, rel=0.05)
    assert math.isnan(scatter(line[:5]))
