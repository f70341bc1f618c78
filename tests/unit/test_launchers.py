"""Multiruns by the launchers and sweepers of Hydra's plugins, or several runs at a time: the same runs; values."""

import math
import multiprocessing
import shlex
import shutil
from multiprocessing import forkserver
from pathlib import Path

import pytest
import yaml
from helpers import rows, run, tiny

import lawa_exp
from lawa_exp.runs.side_by_side import begin, needs
from lawa_exp.runs.turns import Ended, Training
from lawa_exp.runs.value import value_of, weights_of
from lawa_exp.storage.rows import read_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import Failed, UserError

SHORT = tiny("steps=10", "spacing=2", "evaluate.every=5", "save.every=10", "trajectory.every=2", "avg=lawa", "k=2,3")
SHORT = [word for word in SHORT if not word.startswith("averagers.")]
SWEPT = ["-m", *SHORT, "seed=0,1", "sweep=s"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    """The runs root of two trainings, each with two averages, one after another."""
    root = tmp_path_factory.mktemp("ours")
    assert run(*SWEPT, f"runs_root={root}").returncode == 0
    return root


def runs_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("gpt*"))


def all_rows(folder: Path) -> dict[tuple[int, str, str], dict]:
    """What was trained and evaluated, while training or read out later."""
    found = [row for path in (folder, *folder.glob("readouts/*")) for row in rows(path)]
    return {(row["step"], row["split"], row["weights"]): row for row in found}


def test_several_at_a_time_are_the_same_runs(ours, tmp_path):
    done = run(*SWEPT, f"runs_root={tmp_path}", "--jobs", "2", "sweep.value=lawa", warm=False)
    assert done.returncode == 0, done.stderr
    assert runs_in(tmp_path) == runs_in(ours) and len(runs_in(ours)) == 2
    for name in runs_in(ours):
        assert (tmp_path / name / "metrics.jsonl").read_bytes() == (ours / name / "metrics.jsonl").read_bytes()
    assert "2 trainings at a time, each with trainer.threads=1" in done.stdout
    lines = done.stdout.splitlines()
    assert all(line.startswith(("[1] ", "[2] ")) for line in lines if "step " in line and "val loss:" in line)
    assert sum("  lawa-k" in line for line in lines if line.startswith("    ")) == 4  # k=2,3 of two seeds


def test_one_that_fails_does_not_stop_the_others(tmp_path, ours):
    bad, good = runs_in(ours)
    (tmp_path / bad).write_text("no folder")
    done = run(*SWEPT, f"runs_root={tmp_path}", "--jobs", "2", warm=False)
    assert done.returncode == 1 and f"{bad}" in done.stderr and done.stderr.startswith("[1] error: ")
    assert RunDir(tmp_path / good).marker() == ("DONE", {"step": 10})


def test_a_process_that_cannot_be_started_is_a_failure(monkeypatch, tmp_path):
    server = forkserver._forkserver
    server.ensure_running()
    monkeypatch.setattr(server, "_forkserver_address", str(tmp_path / "lost"))
    with pytest.raises(Failed, match=r"its process could not be started \(FileNotFoundError: "):
        begin(multiprocessing.get_context("forkserver").Process(target=print))


def test_joblib_trains_the_same_runs_and_a_second_entry_of_a_run_waits_for_it(ours, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = run(*SWEPT, f"runs_root={tmp_path}", *words, warm=False)
    assert done.returncode == 0, done.stderr
    assert runs_in(tmp_path) == runs_in(ours)
    for name in runs_in(ours):
        assert all_rows(tmp_path / name) == all_rows(ours / name)
    runs = lawa_exp.load(tmp_path / "sweeps" / "s")
    best = min(r.value(weights) for r in runs for weights in ("lawa-k2-s2", "lawa-k3-s2"))
    assert f"least: {best:.4f}  lawa-k" in done.stdout
    typed = shlex.join([*SWEPT, f"runs_root={tmp_path}", *words])
    assert f"    python -m lawa_exp {typed}\n" in (tmp_path / "sweeps" / "s" / "summary.md").read_text()


def test_optuna_minimises_the_rate_and_a_divergence_is_infinite(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs hydra-optuna-sweeper")
    words = [word for word in SHORT if not word.startswith("k=")]
    words += ["k=2", "optimizer.clip_norm=0", "lr.peak=choice(0.001,0.01,1e12)", "sweep=s", f"runs_root={tmp_path}"]
    optuna = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_jobs=3"]
    optuna += [f"hydra.sweeper.storage=sqlite:///{tmp_path}/rates.db", "hydra.sweeper.study_name=rates"]
    refused = run("-m", *words, *optuna, "plan=true")
    assert refused.returncode == 2 and "plan=true: not with hydra/sweeper=optuna" in refused.stderr
    done = run("-m", *words, *optuna, warm=False)
    assert done.returncode == 0, done.stderr
    values = {r.config["lr.peak"]: r.value() for r in lawa_exp.load(tmp_path / "sweeps" / "s")}
    assert values[1e12] == math.inf and values[0.01] < values[0.001]
    found = yaml.safe_load((tmp_path / "sweeps" / "s" / "optimization_results.yaml").read_text())
    assert found["best_params"] == {"lr.peak": 0.01} and found["best_value"] == values[0.01]
    typed = shlex.join(["-m", *words, *optuna])
    assert f"    python -m lawa_exp {typed}\n" in (tmp_path / "sweeps" / "s" / "summary.md").read_text()


def test_submitit_trains_on_this_machine(ours, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs hydra-submitit-launcher")
    words = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    one = [word for word in SWEPT if not word.startswith(("seed=", "k="))]
    done = run(*one, "k=3", "seed=1", f"runs_root={tmp_path}", *words, warm=False)
    assert done.returncode == 0, done.stderr
    (name,) = runs_in(tmp_path)
    expected = {key: row for key, row in all_rows(ours / name).items() if key[2] != "lawa-k2-s2"}
    assert all_rows(tmp_path / name) == expected


def test_a_failed_job_fails_the_sweep_in_a_line(tmp_path):
    asked = [*SWEPT, "hydra/launcher=basic", f"runs_root={tmp_path}"]
    done = run(*asked, "sweep.value=swa")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: sweep.value=swa: choices: lawa-k2-s2, live (job 0: ")
    done = run(*(word for word in asked if not word.startswith("spacing=")), "spacing=6")
    assert done.returncode == 2 and "lawa-k2-s6: it has no value yet after 10 steps" in done.stderr
    assert not runs_in(tmp_path)


def test_what_a_job_is_worth(ours, tmp_path):
    assert weights_of(["ema-d0.9-e1"]) == "ema-d0.9-e1"
    assert weights_of([]) == weights_of(["ema-d0.9-e1", "swa"]) == weights_of(["swa"], "live") == "live"
    assert weights_of(["lawa-k2-s2", "ema-d0.9-e1"], "ema") == "ema-d0.9-e1"
    with pytest.raises(UserError, match=r"sweep.value=lawa: lawa is 2 averages; choose one: lawa-k2-s2, lawa-k3-s2"):
        weights_of(["lawa-k2-s2", "lawa-k3-s2"], "lawa")
    trained = RunDir(ours / runs_in(ours)[0])
    (expected,) = [
        row["loss"]
        for row in read_rows(trained.metrics)
        if (row["step"], row["split"], row["weights"]) == (10, "val", "lawa-k3-s2")
    ]
    assert value_of(trained, "lawa-k3-s2", 10) == expected == lawa_exp.load(trained.path).value("lawa-k3-s2")
    assert lawa_exp.load(trained.path).value() == value_of(trained, "live", 10)  # two averages: which is not said
    with pytest.raises(Failed, match="no val loss of live after step 7"):
        value_of(trained, "live", 7)
    later = RunDir(Path(shutil.copytree(trained.path, tmp_path / "later")))
    later.mark("DIVERGED", step=14)  # of a larger budget
    assert value_of(later, "lawa-k3-s2", 10) == expected and value_of(later, "live", 20) == math.inf


def test_a_training_waits_for_what_it_goes_on_from(tmp_path):
    class Named:
        def __init__(self, run_dir, source=None, teacher=None):
            self.run_dir, self.config = tmp_path / run_dir, self
            self.init = self.teacher = self
            self.from_ = source and str(tmp_path / source)

    one, longer, branch, other = (
        Training(i, prepared, "") for i, prepared in enumerate([Named("a"), Named("a"), Named("b", "a"), Named("c")], 1)
    )
    trainings = [one, longer, branch, other]
    assert [needs(t, trainings, {}) for t in trainings] == [False, True, True, False]
    assert [needs(t, trainings, {1: Ended(0)}) for t in trainings] == [False, False, True, False]
    assert not needs(branch, trainings, {1: Ended(0), 2: Ended(1)})
