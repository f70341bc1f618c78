"""`lawa_exp.load` and `lawa_exp.train`: rows, settings, weights and plots of runs, in Python."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import matplotlib
import pytest
import torch
from helpers import run

import lawa_exp
from lawa_exp.readout.__main__ import parser as readouts
from lawa_exp.runs.ending import next_lines
from lawa_exp.storage.rows import read_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.safetensors import read_tensors
from lawa_exp.suggest import parser as suggestions
from lawa_exp.system.errors import Failed, UserError

matplotlib.use("Agg")
SMALL = "model.layers=1 model.width=32 model.heads=2 model.context=32 batch.size=4 lr.warmup_steps=2 trainer.threads=1"
AVERAGES = "steps=20 avg=[lawa,ema] k=[2,3] spacing=5 evaluate.every=10 evaluate.samples=16"
WORDS = [*SMALL.split(), *AVERAGES.split()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds and a read-out, moved to another place after training."""
    first = tmp_path_factory.mktemp("trained")
    done = run("-m", *WORDS, "seed=0,1", "sweep=two", f"runs_root={first / 'runs'}")
    assert done.returncode == 0, done.stderr
    (path,) = (first / "runs").glob("*seed0*")
    done = run(str(path), "--avg", "swa", "--name", "later", module="lawa_exp.readout")
    assert done.returncode == 0, done.stderr
    moved = tmp_path_factory.mktemp("moved")
    shutil.move(first / "runs", moved / "elsewhere")
    return moved / "elsewhere"


def test_a_sweep_a_folder_of_runs_and_a_run(root):
    sweep, folder = lawa_exp.load(root / "sweeps" / "two"), lawa_exp.load(root)
    assert [r.name for r in sweep] == [r.name for r in folder] and len(sweep) == 2
    alone = lawa_exp.load(sweep[1].path)
    assert alone.config["seed"] == 1 and alone.state == "done" and sweep[alone.name].path.samefile(alone.path)
    assert list(sweep.config.columns) == ["state", "seed"]
    assert [r.name for r in lawa_exp.load(sweep[1].path, sweep[0].path)] == [sweep[1].name, sweep[0].name]


def test_rows_are_those_of_the_files_with_settings_as_columns(root):
    one = lawa_exp.load(root)[0]
    written = read_rows(one.path / "metrics.jsonl")
    own = one.rows[one.rows["readout"] == ""]
    assert [(r["step"], r["split"], r["weights"]) for r in written] == list(
        own[["step", "split", "weights"]].itertuples(index=False, name=None)
    )
    assert own["loss"].tolist() == [r["loss"] for r in written]
    assert set(one.rows["run"]) == {one.name} and set(one.rows["lr.peak"]) == {0.003} and set(one.rows["seed"]) == {0}
    later = one.rows[one.rows["readout"] == "later"]
    assert set(later["weights"]) >= {"swa-e5"} and len(lawa_exp.load(root).rows) > len(one.rows)


def test_weights_are_those_of_the_files(root):
    one = lawa_exp.load(root)[0]
    assert one.averages == ["lawa-k2-s5", "ema-d0.99-e1", "lawa-k3-s5"] and one.steps() == [5, 10, 15, 20]
    for name, folder in (("live", "trajectory"), ("lawa-k2-s5", "averages/lawa-k2-s5")):
        expected = read_tensors(one.path / folder / "step_00000020" / "model.safetensors")
        actual = one.weights(name)
        assert actual.keys() == expected.keys() and all(torch.equal(actual[n], expected[n]) for n in expected)
    mean = {n: (one.weights(step=15)[n].double() + one.weights(step=20)[n].double()) / 2 for n in expected}
    assert all(torch.equal(one.weights("lawa-k2-s5")[n], mean[n].to(expected[n].dtype)) for n in expected)


def test_what_is_not_there_is_named(root, tmp_path):
    one = lawa_exp.load(root)[0]
    for wrong, message in (
        (lambda: one.weights("lawa-k9-s5"), "did you mean lawa-k"),
        (lambda: one.weights("live", 7), "of the steps 5, 10, 15, 20, not of 7"),
        (lambda: one.weights("../trajectory"), "expected live, or the id of an average"),
        (lambda: one.plot("swa-e9"), "no row of swa-e9"),
        (lambda: lawa_exp.load(tmp_path / "nowhere"), "nowhere: no such folder"),
        (lambda: lawa_exp.load(tmp_path), "expected a sweep"),
        (lambda: lawa_exp.load(root)["seed9"], "no run of this name"),
        (lambda: lawa_exp.load(), "expected a run"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
    shutil.copytree(one.path, tmp_path / "damaged")
    file = tmp_path / "damaged" / "trajectory" / "step_00000020" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Failed, match=r"model\.safetensors"):
        lawa_exp.load(tmp_path / "damaged").weights()


def test_the_table_at_the_end_and_the_steps_saved_are_those_of_the_rows(root):
    one = lawa_exp.load(root)[0]
    table, rows = one.table(), read_rows(one.path / "metrics.jsonl")
    last = {r["weights"]: r["loss"] for r in rows if r["split"] == "val" and r["step"] == 20}
    assert table["value"].to_dict() == last and list(table.index) == ["live", *one.averages]
    assert [name for name, best in table["best"].items() if best] == [min(last, key=last.get)]
    assert table["to_live"]["lawa-k2-s5"] == last["lawa-k2-s5"] - last["live"]
    saved = one.saved("lawa-k2-s5")
    longest = table.loc["lawa-k2-s5"]
    assert saved["loss"][20] == last["lawa-k2-s5"] and saved["steps"].max() == longest["saving"]
    assert saved["steps"][longest["at_step"]] == longest["saving"]
    with pytest.raises(UserError, match="has no evaluations of swa"):
        one.saved("swa")


def test_the_lines_at_the_end_of_a_run_are_commands_that_work(root):
    one = lawa_exp.load(root)[0]
    suggest, readout, python = next_lines(RunDir(one.path), read_rows(one.path / "metrics.jsonl", trained=False))
    for line, parser in ((suggest, suggestions()), (readout, readouts())):
        words = shlex.split(line, comments=True)
        assert words[:2] == ["python", "-m"] and parser.parse_intermixed_args(words[3:]).run == str(one.path)
    names: dict = {}
    exec(shlex.split(python, comments=True)[2], names)
    best = next(name for name, is_best in one.table()["best"].items() if is_best)
    assert all(torch.equal(names["weights"][key], value) for key, value in one.weights(best).items())


def test_plots_have_a_line_for_each_run_and_weights(root):
    both = lawa_exp.load(root)
    labels = [line.get_label() for line in both.plot("live", "lawa-k2-s5").get_lines()]
    assert labels == [f"seed={s}: {w}" for s in (0, 1) for w in ("live", "lawa-k2-s5")]
    axes = both[0].plot()
    assert [line.get_label() for line in axes.get_lines()] == ["live", *both[0].averages]
    assert axes.get_ylabel() == "val loss (nats per target)"
    assert "val loss, lawa-k2-s5" in both._repr_html_() and both[0].name in both[0]._repr_html_()


def test_train_returns_the_run_and_raises_what_the_command_says(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    trained = lawa_exp.train(WORDS, seed=3)
    assert trained.config["seed"] == 3 and trained.state == "done" and trained.path.parent == Path("runs")
    assert "step      20  val loss: live" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"^optimizer.beta1=2: expected a number"):
        lawa_exp.train([*WORDS, "optimizer.beta1=2"], quiet=True)
    assert capfd.readouterr().out == ""
