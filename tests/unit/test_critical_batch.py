"""`python -m lawa_exp.critical_batch` on curves whose S_min, E_min and B_crit are known, and on a sweep of its own."""

import csv
import importlib
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import run, tiny

from lawa_exp.critical_batch import fits
from lawa_exp.critical_batch.__main__ import main

SIZES = (8, 16, 32, 64, 128)
AT_ONE, EXPONENT = 600.0, 3.0  # B_crit(L) = 600 / L^3 samples: 9.4 at a loss of 4, 75 at 2
STEPS = {8: 6000, 16: 4000, 32: 2500, 64: 1500, 128: 1200}


def s_min(loss: float) -> float:
    """Inverse of L = 1.5 + (20 / S)^0.5, the curve of a batch without noise."""
    return 20 / (loss - 1.5) ** 2


def loss_after(step: int, size: int, at_one: float = AT_ONE) -> float:
    """The loss L at which S_min(L) (1 + B_crit(L) / B) is `step`, by bisection."""
    low, high = 1.5, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        taken = s_min(middle) * (1 + at_one / middle**EXPONENT / size)
        low, high = (middle, high) if taken > step else (low, middle)
    return high


def write_run(
    root: Path, size: int, seed: int = 0, at_one: float = AT_ONE, extra: Iterable[dict[str, Any]] = (), **changes: Any
) -> Path:
    """A run directory with what is read of one: the closed form's evaluations, every 4 steps."""
    folder = root / f"run-{size}-{seed}-{'-'.join(map(str, changes.values()))}"
    folder.mkdir(parents=True)
    lr = {"kind": "constant", "peak": 1e-3, "warmup_steps": 100}
    identity = {"model": {"kind": "gpt", "width": 8}, "dataset": {"fingerprint": "f"}, "lr": lr, "seed": seed}
    identity |= {"batch": {"kind": "constant", "size": size}} | changes
    (folder / "config.yaml").write_text(yaml.safe_dump({"trajectory_id": "t", "identity": identity}))
    rows = []
    for step in range(0, STEPS[size] + 1, 4):
        seen = {"trained_samples": step * size, "trained_tokens": step * size * 4}
        loss = loss_after(step, size, at_one) if step else 20.0
        rows.append({"step": step, "split": "val", "weights": "live", "loss": loss, **seen})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, *extra]))
    (folder / "DONE").write_text("{}")
    return folder


def sweep_of(root: Path, runs: Iterable[Path]) -> Path:
    folder = root / "sweep"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"command": "", "entries": [{"run_dir": str(r)} for r in runs]}))
    return folder


def analysed(folder: Path, *flags: str) -> dict[str, Any]:
    assert main([str(folder), *flags]) == 0
    return json.loads((folder / "critical_batch.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root, size) for size in SIZES]


@pytest.mark.parametrize("sizes", [(2, 64), (2, 8, 64), (1, 10, 100, 1000)])
def test_a_fit_of_exact_steps_is_exact(sizes: tuple[int, ...]) -> None:
    found = fits.fit(2.0, {b: 130.0 + 5200.0 / b for b in sizes})
    assert found.s_min == pytest.approx(130, rel=1e-9) and found.e_min == pytest.approx(5200, rel=1e-9)
    assert found.critical == pytest.approx(40, rel=1e-9) and found.error < 1e-9
    for size in sizes:  # the relation as it is published
        s, e = found.at(size), size * found.at(size)
        assert (s / found.s_min - 1) * (e / found.e_min - 1) == pytest.approx(1)


def test_a_fit_with_one_side_only_has_no_critical_batch_size() -> None:
    falling = fits.fit(2.0, {16: 100, 32: 45, 64: 20})  # faster than the batch grows
    assert falling.s_min == 0 and falling.critical is None and falling.e_min == pytest.approx(1416.3, abs=0.1)
    rising = fits.fit(2.0, {16: 100, 32: 105, 64: 110})
    assert rising.e_min == 0 and rising.critical is None and rising.s_min == pytest.approx(104.7, abs=0.1)


def test_the_fit_is_the_minimum_of_the_relative_deviations() -> None:
    steps = {8: 700.0, 16: 420.0, 32: 250.0, 64: 190.0}

    def squares(s: float, e: float) -> float:
        return sum(((s + e / size) / n - 1) ** 2 for size, n in steps.items())

    found = fits.fit(2.0, steps)
    for s, e in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99)):
        assert squares(found.s_min * s, found.e_min * e) > squares(found.s_min, found.e_min)


def test_curves() -> None:
    points = [(10, 5.0), (20, 3.0), (30, 4.0), (40, 2.0)]
    assert fits.steps_to(points, 4.0) == 15 and fits.steps_to(points, 2.5) == 37.5
    assert fits.steps_to(points, 5.5) is None and fits.steps_to(points, 1.0) is None
    assert fits.loss_at(points, 25) == 3.5 and fits.loss_at(points, 9) is None and fits.loss_at(points, 41) is None
    assert fits.smoothed(points, 1) == points
    assert fits.smoothed(points, 3) == [(10, 5.0), (20, 4.0), (30, 3.0), (40, 2.0)]
    assert fits.relative_errors([(10, 5.5), (30, 3.0)], points) == [
        (10, pytest.approx(0.1)),
        (20, pytest.approx(1.25 / 3)),
        (30, 0.25),
    ]


def test_the_closed_form_is_recovered(tmp_path: Path, runs: list[Path]) -> None:
    found = analysed(sweep_of(tmp_path, runs))
    assert len(found["levels"]) == 8 and found["batch_sizes"] == list(SIZES) and found["tokens_per_sample"] == 4
    for row in found["levels"]:
        critical = AT_ONE / row["loss"] ** EXPONENT
        assert row["s_min"] == pytest.approx(s_min(row["loss"]), rel=5e-3)
        assert row["e_min"] == pytest.approx(s_min(row["loss"]) * critical, rel=5e-3)
        assert row["b_crit"] == pytest.approx(critical, rel=1e-2)
        assert row["b_crit_law"] == pytest.approx(critical, rel=1e-2)
        assert row["fit_error"] < 2e-3 and row["b_crit_low"] is None and row["noise_scale"] is None
    assert found["law"]["exponent"] == pytest.approx(EXPONENT, rel=1e-2)
    assert found["law"]["at_one"] == pytest.approx(AT_ONE, rel=2e-2)
    losses = [row["loss"] for row in found["levels"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(max(loss_after(STEPS[b], b) for b in SIZES))  # all the way down


def test_what_is_written(tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here"
    found = analysed_into(out, runs, "--levels", "1.8,2.0", "--hold-out", "32")
    with (out / "critical_batch.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["loss"]) for line in lines] == [2.0, 1.8]
    for line, row in zip(lines, found["levels"], strict=True):
        assert float(line["b_crit"]) == row["b_crit"] and float(line["steps_64"]) == row["steps"]["64"]
        assert line["b_crit_low"] == ""
    page, shown = (out / "critical_batch.md").read_text(), capsys.readouterr().out
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 4 and all(line in shown for line in table)
    assert (
        "python -m lawa_exp.critical_batch" in page and "batch size 32 held out, predicted from 8, 16, 64, 128" in page
    )
    assert (out / "critical_batch.png").read_bytes().startswith(b"\x89PNG")


def analysed_into(out: Path, runs: list[Path], *flags: str) -> dict[str, Any]:
    assert main([*map(str, runs), "--out", str(out), *flags]) == 0
    return json.loads((out / "critical_batch.json").read_text())


@pytest.mark.parametrize("size", SIZES)
def test_a_held_out_curve_is_predicted(tmp_path: Path, runs: list[Path], size: int) -> None:
    """Between the others and beyond them; the closed form is theirs, and the batch size beside it is no prediction."""
    held = analysed_into(tmp_path, runs, "--hold-out", str(size))["hold_out"]
    assert held["from"] == [b for b in SIZES if b != size] and held["evaluations"] > 40
    assert held["median_error"] < 5e-4 and held["max_error"] < 1e-2
    for guess in ("nearest_at_same_samples", "nearest_at_same_steps"):
        assert held[guess]["median_error"] > 20 * held["median_error"]
    assert held["covered"][-1][0] >= 0.95 * STEPS[size] or size == 128  # which gets lower than the others
    beyond = held["beyond_the_fits"]
    assert (beyond["evaluations"] > 10) == (size != 8) and (beyond["max_error"] or 0) < 1e-3
    for step, loss in held["covered"]:
        assert loss == pytest.approx(loss_after(step, size))


def test_the_held_out_runs_own_curve_is_not_looked_at(tmp_path: Path, runs: list[Path]) -> None:
    worse = write_run(tmp_path, 32, at_one=3 * AT_ONE)
    replaced = [worse if "run-32-" in r.name else r for r in runs]
    as_it_was, other = (analysed_into(tmp_path / "out", rs, "--hold-out", "32")["hold_out"] for rs in (runs, replaced))
    assert as_it_was["predicted"] == other["predicted"]
    assert other["median_error"] > 20 * as_it_was["median_error"]


def test_intervals_over_seeds(tmp_path: Path) -> None:
    """B_crit of the seeds is 0.8, 1 and 1.25 times as large: the logarithm's deviation is log 1.25."""
    runs = [
        write_run(tmp_path, size, seed, AT_ONE * factor)
        for size in SIZES
        for seed, factor in enumerate((0.8, 1.0, 1.25))
    ]
    found = analysed(sweep_of(tmp_path, runs), "--hold-out", "32")
    assert found["seeds"] == 3
    factor = math.exp(4.303 * math.log(1.25) / math.sqrt(3))
    for row in found["levels"]:
        assert row["b_crit_high"] / row["b_crit"] == pytest.approx(factor, rel=2e-2)
        assert row["b_crit"] / row["b_crit_low"] == pytest.approx(factor, rel=2e-2)
        assert row["b_crit_low"] < AT_ONE / row["loss"] ** EXPONENT < row["b_crit_high"]
    exponents = [law["exponent"] for law in found["laws_by_seed"]]
    assert exponents == [pytest.approx(EXPONENT, rel=2e-2)] * 3
    assert len(found["hold_out"]["by_seed"]) == 3
    assert all(seed["median_error"] < 1e-3 for seed in found["hold_out"]["by_seed"])


def test_of_several_ways_of_training_the_best_counts(tmp_path: Path, runs: list[Path]) -> None:
    """Another rate with three times the noise at two batch sizes, in one sweep with the others."""
    poor = {"kind": "constant", "peak": 1e-5, "warmup_steps": 100}
    worse = [write_run(tmp_path, size, at_one=3 * AT_ONE, lr=poor) for size in (16, 64)]
    alone = analysed_into(tmp_path / "alone", runs)
    both = analysed_into(tmp_path / "both", [*worse, *runs])
    assert both["levels"] == alone["levels"] and not set(both["runs"]) & set(map(str, worse))


def test_a_way_tried_with_fewer_seeds_does_not_count(tmp_path: Path) -> None:
    """One lucky run at another rate, with a third of the noise, beside two seeds."""
    runs = [write_run(tmp_path, size, seed) for size in SIZES for seed in (0, 1)]
    other = {"kind": "constant", "peak": 1e-2, "warmup_steps": 100}
    lucky = [write_run(tmp_path, size, at_one=AT_ONE / 3, lr=other) for size in SIZES[:2]]
    both = analysed_into(tmp_path / "both", [*lucky, *runs])
    assert both["seeds"] == 2 and not set(both["runs"]) & set(map(str, lucky))


def test_the_noise_scale_beside_it(tmp_path: Path) -> None:
    """Rows around the step of a level: tr(Sigma) = 40 and |G|^2 = 2 with errors that cancel over two rows."""
    runs = []
    for size in SIZES:
        extra = [
            {"step": step, "split": "train", "weights": "live", "loss": 1.0, "grad_squared": 2 + error}
            | {"grad_variance": 40 - 10 * error}
            for step in range(STEPS[size])
            for error in ((3, -3)[step % 2],)
        ]
        runs.append(write_run(tmp_path, size, extra=extra if size > 16 else ()))
    scales = [row["noise_scale"] for row in analysed(sweep_of(tmp_path, runs))["levels"]]
    assert statistics.median(scales) == pytest.approx(20, rel=0.2) and all(10 < s < 40 for s in scales)


def edited(folder: Path, **changes: Any) -> Path:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    content["identity"] |= changes
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    (folder / ".checksums").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize(
    "flags, code, parts",
    [
        (["--levels", "2.5,x"], 2, ["--levels=2.5,x", "expected losses"]),
        (["--levels", "1.6"], 2, ["--levels=1.6", "does not reach it (its lowest is"]),
        (["--levels", "9"], 2, ["--levels=9", "is under it at its first evaluation"]),
        (["--levels", "nan"], 2, ["--levels=nan"]),
        (["--hold-out", "24"], 2, ["--hold-out=24", "expected one of 8, 16, 32, 64, 128"]),
        (["--weights", "ema-d0.9-e1"], 2, ["--weights=ema-d0.9-e1", "has 0 evaluations of it"]),
        (["--smooth", "2"], 2, ["--smooth=2", "expected an odd number"]),
        (["--smooth", "0"], 2, ["--smooth=0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(
    tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str], flags: list[str], code: int, parts: list[str]
) -> None:
    assert main([*map(str, runs), "--out", str(tmp_path / "out"), *flags]) == code
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and not said.out and not (tmp_path / "out").exists()
    assert all(part in said.err for part in parts), said.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([*map(str, arguments)]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_runs_that_do_not_fit(tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (write_run(tmp_path, size) for size in (8, 16, 32))
    assert "only batch size 8, 16; expected 3 different ones or more" in refused(capsys, a, b, b)
    assert "leaves 2 batch sizes, expected 3 or more" in refused(capsys, a, b, c, "--hold-out", 16)
    assert "expected a sweep (manifest.json) or a run directory" in refused(capsys, tmp_path / "none")
    line = refused(capsys, a, b, edited(c, model={"kind": "gpt", "width": 9}))
    assert f"{c.name} and {a.name} differ in model" in line
    edited(c, model={"kind": "gpt", "width": 8}, batch={"kind": "ramp", "size": 32})
    assert f"{c.name} has batch=ramp; expected batch=constant" in refused(capsys, a, b, c)
    edited(c, batch={"kind": "constant", "size": 32}, lr={"kind": "constant", "warmup_steps": 2490})
    line = refused(capsys, a, b, c)
    assert "no loss is passed at every batch size after its warm-up: 8 gets down to" in line and "32 is at" in line
    (c / "config.yaml").write_text("identity: [")
    assert f"{c / 'config.yaml'} is damaged" in refused(capsys, a, b, c)
    for folder in (a, b, c):
        (folder / "DONE").unlink()
    assert "none of its runs is finished" in refused(capsys, sweep_of(tmp_path, [a, b, c]))


def test_an_unfinished_run_is_left_out_and_named(
    tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = write_run(tmp_path, 64, seed=1)
    (unfinished / "DONE").rename(unfinished / "STOPPED")
    found = analysed(sweep_of(tmp_path, [*runs, unfinished]))
    assert found["runs"] == list(map(str, runs))
    assert f"{unfinished.name} is not finished, and left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "lr, said",
    [({"kind": "cosine", "horizon": 100}, True), ({"kind": "step", "at": [200]}, True), ({"kind": "constant"}, False)],
)
def test_a_decaying_rate_is_noted(tmp_path: Path, lr: dict[str, Any], said: bool) -> None:
    lr = {**lr, "warmup_steps": 100}
    notes = analysed(sweep_of(tmp_path, [write_run(tmp_path, size, lr=lr) for size in SIZES]))["notes"]
    assert any("the rate decays" in note for note in notes) == said


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of real runs that was started with a relative runs_root, and moved with its runs."""
    root = tmp_path_factory.mktemp("trained")
    asked = [*tiny("batch.size=4,8,16,32", "steps=60", "evaluate.every=10"), "avg=ema", "averagers.ema.decay=0.5"]
    asked = [o for o in asked if not o.startswith(("k=", "spacing=", "averagers.swa", "averagers.ema.decay=0.9"))]
    extra = ["watch=noise_scale", "logger.every=1", "trainer.micro_batch=2", "sweep=s"]
    done = run("-m", *asked, *extra, warm=True, cwd=root)
    assert done.returncode == 0, done.stderr
    for entry in json.loads((root / "runs/sweeps/s/manifest.json").read_text())["entries"]:
        assert (root / entry["run_dir"] / "DONE").is_file()
    return (root / "runs").rename(root / "elsewhere") / "sweeps" / "s"


def test_a_sweep_from_training_to_page(moved: Path) -> None:
    """Real run directories: what is read of them is what they hold, of averages too."""
    live, ema = (analysed(moved, "--hold-out", "8", "--weights", w) for w in ("live", "ema-d0.5-e1"))
    for found in (live, ema):
        assert found["tokens_per_sample"] == 32 and len(found["runs"]) == 4
        assert found["hold_out"]["evaluations"] >= 2 and found["hold_out"]["max_error"] < 0.3
        assert all(row["noise_scale"] > 0 for row in found["levels"])
    assert live["levels"] != ema["levels"]


def test_a_sweep_is_read_from_any_folder_wherever_it_is(
    moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only from the folder in which it was started, and a run that is gone is named, by each command."""
    root = shutil.copytree(moved.parent.parent, tmp_path / "copied")
    names = sorted(path.parent.name for path in root.glob("*/DONE"))
    assert len(names) == 4

    def said(module: str, *arguments: str) -> str:
        capsys.readouterr()
        assert importlib.import_module(module).main([*arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    for cwd, sweep in ((tmp_path, "copied/sweeps/s"), (root / "sweeps" / "s", "."), (root, str(root / "sweeps" / "s"))):
        monkeypatch.chdir(cwd)
        told = json.loads(said("lawa_exp.status.__main__", sweep, "--json"))
        assert told["counts"]["done"] == 4 and all(Path(r["run_dir"]).is_dir() for r in told["runs"])
        text = said("lawa_exp.summary", sweep)
        assert len(re.findall(r"^\| +batch.size=\d+ \|", text, re.MULTILINE)) == 4 and "left out" not in text
        found = analysed(Path(sweep))["runs"]
        assert sorted(Path(r).name for r in found) == names and all(Path(r).is_dir() for r in found)
        said("lawa_exp.dashboard.__main__", sweep, "--out", str(tmp_path / "page.html"))
        assert '"state":"done"' in (tmp_path / "page.html").read_text()
    gone = root / names[0]
    gone.rename(tmp_path / "gone")
    assert f"Not finished, and left out: {gone.name} (missing)" in said("lawa_exp.summary", sweep)
    assert f"{gone.name} is missing, and left out" in said("lawa_exp.critical_batch.__main__", sweep)
    assert json.loads(said("lawa_exp.status.__main__", sweep, "--json"))["counts"]["not started"] == 1
    for other in names[1:]:
        (root / other / "DONE").unlink()
    assert importlib.import_module("lawa_exp.summary").main([sweep]) == 2
    told = capsys.readouterr().err
    assert "none of its runs is finished: " in told and f"{gone.name} (missing)" in told


def test_a_moved_sweep_is_pushed(moved: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    root = shutil.copytree(moved.parent.parent, tmp_path / "copied")
    first, second, *others = sorted(path.parent for path in root.glob("*/DONE"))
    for folder in others:
        shutil.rmtree(folder)
    first.rename(tmp_path / "gone")
    done = run("copied/sweeps/s", "--offline", module="lawa_exp.push", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sent, *rest = sorted(done.stdout.splitlines(), key=lambda line: "nothing to send" in line)
    assert sent.startswith(f"copied/{second.name}: 61 of 61 steps sent, to copied/") and len(rest) == 3
    assert f"copied/{first.name}: no run there yet, nothing to send" in rest


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    code = "import sys; from lawa_exp.critical_batch.__main__ import main\ntry: main(['--help'])\n"
    code += "except SystemExit: pass\nassert not {'torch', 'matplotlib', 'yaml'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "--hold-out" in done.stdout, done.stderr
