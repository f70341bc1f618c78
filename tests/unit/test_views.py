"""Views of the same weights, and evaluators from a table: closed forms, rows, tables, joins, a stop between views."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Strike, lines_of, rows, run, tiny
from torch.nn import functional as F

from lawa_exp.axes.dataset.tasks import Classes, Tokens
from lawa_exp.axes.logger.rows import final, payload
from lawa_exp.dashboard.collect import val_rows
from lawa_exp.evaluation.calibration import PLAIN, TEMPERATURES, WithCalibration, calibration_error
from lawa_exp.evaluation.score import OnModel
from lawa_exp.evaluation.views import VIEWS, views_named
from lawa_exp.readout.__main__ import parser, request_of
from lawa_exp.readout.command import read
from lawa_exp.results.statistics import curve
from lawa_exp.runs.choices import config_from
from lawa_exp.seams.task import IGNORE
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.rows import averager_ids, name_of, with_newer
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.safetensors import read_tensors
from lawa_exp.system.cli import exit_code
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError

ROOT = Path(__file__).parents[2]
ASKED = tiny("evaluate.batch_size=8", "avg=[lawa]", "k=2", "trajectory.every=10")
ASKED = [o for o in ASKED if not o.startswith(("averagers.ema", "averagers.swa"))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; snapshots 10, ... 60, evaluations 20, 40, 60 in 4 batches of 8 samples. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run(*ASKED, f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder


def readout(*arguments: Any) -> tuple[int, str, str]:
    """The command in this process: its exit code, what it printed, its errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        request = request_of(parser().parse_intermixed_args([str(a) for a in arguments]))
        code = exit_code(lambda: read(request))
    return code, out.getvalue(), err.getvalue()


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "matrix": torch.randn(5, 7, generator=generator),
        "kernel": torch.randn(4, 3, 2, 2, generator=generator) * 1e-3,
        "half": torch.randn(3, 4, generator=generator).half(),
        "bias": torch.randn(7, generator=generator),
        "running_mean": torch.randn(7, generator=generator),
        "count": torch.tensor(3),
    }
    tensors["matrix"][2] = 0
    return tensors


AVERAGED = frozenset({"matrix", "kernel", "half", "bias"})


def test_bfloat16_rounds_parameters_to_the_nearest_with_ties_to_even() -> None:
    plain = weights()
    plain["bias"][:3] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)])  # ties: to 1, 1 + 2^-6, -1
    before = {n: t.clone() for n, t in plain.items()}
    seen = VIEWS["bfloat16"]()(plain, AVERAGED)
    assert seen["bias"][:3].tolist() == [1, 1 + 2**-6, -1]
    for name in ("matrix", "kernel", "bias"):
        bits = plain[name].numpy().view(np.uint32).astype(np.uint64)
        expected = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
        assert np.array_equal(seen[name].numpy(), expected)
    assert all(t.dtype == plain[n].dtype for n, t in seen.items()) and list(seen) == list(plain)
    assert torch.equal(seen["running_mean"], plain["running_mean"]), "a buffer"
    assert all(torch.equal(t, before[n]) for n, t in plain.items()), "what came in stays"


def test_int8_has_one_scale_for_each_output_channel() -> None:
    plain = weights()
    seen = VIEWS["int8"]()(plain, AVERAGED)
    for name in ("matrix", "kernel", "half"):
        for channel, rounded in zip(plain[name].float().numpy(), seen[name].numpy(), strict=True):
            scale = np.abs(channel).max() / np.float32(127)
            levels = np.rint(channel / scale) if scale else channel
            assert np.abs(levels).max() in (0, 127)
            assert np.array_equal((levels * scale).astype(rounded.dtype), rounded)
            assert len(np.unique(rounded)) <= 255 and np.abs(rounded - channel).max() <= scale * 0.51
    assert all(torch.equal(seen[n], plain[n]) for n in ("bias", "running_mean", "count"))
    assert not seen["matrix"][2].any(), "a channel of zeros"


def test_a_wrong_view_lists_the_choices() -> None:
    with pytest.raises(UserError, match=r"--view=bfloat: did you mean bfloat16\? choices: bfloat16, int8"):
        views_named(["bfloat"])


def test_rows_and_table_of_views(trained: Path, tmp_path: Path) -> None:
    """Each evaluation once more through each view; plain rows are those of a read-out without, byte for byte."""
    asked = [trained, "--avg", "lawa,ema", "--k", "1,2", "--spacing", "20", "--decay", "0.5"]
    for out, more in (("plain", []), ("seen", ["--view", "int8,bfloat16"])):
        code, printed, errors = readout(*asked, *more, "--out", tmp_path / out)
        assert code == 0, errors
    plain, seen = rows(tmp_path / "plain"), rows(tmp_path / "seen")
    assert [r for r in seen if "view" not in r] == plain
    ids = averager_ids(seen)
    assert ids == averager_ids(plain) == ["lawa-k1-s20", "ema-d0.5-e10", "lawa-k2-s20"], "by their first step"
    at = {(r["step"], r["split"], name_of(r)): r for r in seen}
    assert len(at) == len(seen), "no two rows of one key"
    for step, split, name in [key for key in at if "@" not in key[2]]:
        for view in ("int8", "bfloat16"):
            row = at[step, split, f"{name}@{view}"]
            assert (
                row["view"] == view
                and row.items() >= {k: v for k, v in at[step, split, name].items() if k != "loss"}.items()
            )
    assert {s for s, split, name in at if (split, name) == ("val", "live@int8")} == {20, 40, 60}
    assert at[60, "val", "lawa-k1-s20@int8"]["loss"] == at[60, "val", "live@int8"]["loss"]
    config = config_from(RunDir(trained).read_config() or {})
    score = OnModel(config, config.dataset.open(config.model.context), torch.device("cpu"), Ranks())
    two = [read_tensors(steps_in(trained / "trajectory")[s] / "model.safetensors") for s in (40, 60)]
    mean = {n: ((two[0][n].double() + two[1][n].double()) / 2).float() for n in two[0]}
    for view in ("int8", "bfloat16"):
        for name, tensors in (("live", two[1]), ("lawa-k2-s20", mean)):
            loss = score(VIEWS[view]()(tensors, score.averaged)).fields["loss"]
            assert at[60, "val", f"{name}@{view}"]["loss"] == loss != at.get((60, "val", name), {}).get("loss")
    summary = (tmp_path / "seen" / "summary.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in summary.splitlines() if "|" in line]
    table = {(line[0], line[1]): line for line in lines if line[1:2] and line[1] in VIEWS}
    assert list(table) == [(id, view) for view in ("int8", "bfloat16") for id in ("live", ids[0], ids[2], ids[1])]
    for (id, view), line in table.items():
        loss = at[60, "val", f"{id}@{view}"]["loss"]
        gap = loss - at[60, "val", f"live@{view}"]["loss"]
        assert line[2] == f"{loss:.4f}" and (id == "live" or line[3].startswith(f"{gap:+.4f} ± "))
    assert "int8: matrices rounded to int8" in printed and "as they are and as int8 and bfloat16" in printed
    assert "@" not in (tmp_path / "plain" / "summary.md").read_text()
    readout(*asked, "--view", "int8")
    folder = next(p for p in (trained / "readouts").iterdir() if "view" in p.name)
    try:
        assert folder.name.endswith("-view-int8"), "never in place of a plain read-out"
        shown = val_rows(trained)
        assert all("view" not in r for r in shown) and curve(shown, "lawa-k2-s20") == curve(plain, "lawa-k2-s20")
    finally:
        shutil.rmtree(folder)


def test_readers_tell_a_view_from_the_plain_weights() -> None:
    live: Any = {"step": 10, "split": "val", "weights": "live", "loss": 2.0}
    lawa: Any = {
        "step": 10,
        "split": "val",
        "weights": "lawa-k2-s5",
        "averager": "lawa",
        "k": 2,
        "spacing": 5,
        "loss": 1.5,
    }
    seen = [{**r, "view": "int8", "loss": r["loss"] - 1} for r in (live, lawa)]
    both = [live, seen[0], lawa, seen[1]]
    assert curve(both, "lawa-k2-s5") == [(10, 1.5)] and curve(both, "lawa-k2-s5@int8") == [(10, 0.5)]
    assert averager_ids(both) == ["lawa-k2-s5"]
    assert with_newer([live, lawa], seen) == [live, lawa, *seen]
    assert with_newer(both, [seen[0]]) == [live, lawa, seen[1], seen[0]]
    sent = payload(both, None)
    assert sent["val/lawa-k2-s5/loss"] == 1.5 and sent["val/lawa-k2-s5@int8/loss"] == 0.5
    assert sent["best/lawa/loss"] == 1.5
    table, summary = final(both, [{**r, "split": "test"} for r in both])
    assert [line[5] for line in table] == [2.0, 1.5] and summary["test/lawa-k2-s5/loss"] == 1.5


@pytest.mark.parametrize("signal, code", [("SIGKILL", -9), ("SIGTERM", 75)])
def test_a_read_out_that_was_stopped_between_views_goes_on(
    signal: str, code: int, trained: Path, tmp_path: Path
) -> None:
    shape = [o for o in ASKED if o.startswith(("model.", "evaluate.samples", "evaluate.batch", "trainer.threads"))]
    asked = [trained / "trajectory", "--revisions", "step10..step40"]
    asked += ["--model", "gpt_tiny", "--dataset", "pydocs", *shape]
    asked += ["--avg", "lawa,ema", "--k", "2", "--spacing", "10", "--decay", "0.5", "--view", "bfloat16,int8"]
    out, twin = tmp_path / "out", tmp_path / "twin"
    strike = Strike("lawa_exp.evaluation.views.int8:Int8.__call__", n=7, signal=signal)  # 2 at step 10, 3 at 20 and 30
    struck = run(*map(str, asked), "--out", str(out), module="lawa_exp.readout", strike=strike)
    assert struck.returncode == code, struck.stderr
    steps = [json.loads(line).get("step") for line in (out / "progress.jsonl").read_text().splitlines()]
    assert steps == [None, 10, 20] and not (out / "metrics.jsonl").exists()
    code, _, errors = readout(*[a for a in asked if a != "bfloat16,int8"], "int8", "--out", out)
    assert code == 2 and "a read-out of something else was begun there" in errors, "other views"
    code, printed, errors = readout(*asked, "--out", out)
    assert code == 0 and "going on behind step 20" in printed, errors
    assert readout(*asked, "--out", twin)[0] == 0
    assert (out / "metrics.jsonl").read_bytes() == (twin / "metrics.jsonl").read_bytes()
    assert len(lines_of(out, "ema-d0.5-e10")) == 3 * 4


def by_hand(scores: torch.Tensor, targets: torch.Tensor, bins: int, temperature: float) -> tuple[float, float]:
    """Expected calibration error and mean loss, sample by sample."""
    kept = targets != IGNORE
    probabilities = torch.softmax(scores[kept].double() / temperature, -1)
    confidence, guess = probabilities.max(-1)
    right, error = (guess == targets[kept]).double(), 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & (confidence < (b + 1) / bins)
        if inside.any():
            error += float(abs(right[inside].mean() - confidence[inside].mean()) * inside.double().mean())
    return error, float(F.cross_entropy(scores[kept].double() / temperature, targets[kept]))


@pytest.mark.parametrize("task, shape", [(Classes(), (300,)), (Tokens(), (10, 30))])
def test_calibration_is_its_definition(task: Any, shape: tuple[int, ...]) -> None:
    """And scores that are twice as large have twice the temperature."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(*shape, 6, generator=generator)
    targets = torch.multinomial(torch.softmax(scores.view(-1, 6), -1), 1, generator=generator).view(shape)
    targets.view(-1)[::7] = IGNORE
    best = []
    for factor in (1, 2):
        summed = WithCalibration(task, 10).sums(factor * scores, targets).numpy()
        assert np.array_equal(summed[: task.columns], task.sums(factor * scores, targets).numpy())
        of = summed[task.columns :].reshape(len(TEMPERATURES), 31)
        best.append(TEMPERATURES[int(of[:, 0].argmin())])
        for at in (PLAIN, 5, 60):
            error, loss = by_hand((factor * scores).view(-1, 6), targets.view(-1), 10, TEMPERATURES[at])
            assert calibration_error(of[at, 1:].reshape(3, 10)) == pytest.approx(error, abs=1e-6)
            assert of[at, 0] / summed[1] == pytest.approx(loss, rel=1e-5)
    assert best[1] == 2 * best[0] and 0.8 < best[0] < 1.25


def test_calibration_of_a_run(trained: Path, tmp_path: Path) -> None:
    """Told on blocks that had no vote in the temperature; losses are the run's own."""
    asked = [trained, "--k", "2", "--spacing", "20", "--evaluate", "calibration", "--view", "bfloat16"]
    code, printed, errors = readout(*asked, "--bins", "8", "--out", tmp_path / "out")
    assert code == 0 and "(8 bins)" in printed, errors
    seen = rows(tmp_path / "out")
    own = dict(curve(rows(trained), "live"))
    assert {s: v for s, v in curve(seen, "live") if s in own} == {s: v for s, v in own.items() if s}
    measured = {(name_of(r), r["metric"]): r for r in seen if r["split"] == "calibration" and r["step"] == 60}
    assert {name for name, _ in measured} == {"live", "live@bfloat16", "lawa-k2-s20", "lawa-k2-s20@bfloat16"}
    live = {metric: r for (name, metric), r in measured.items() if name == "live"}
    assert set(live) == {"temperature", "ece", "loss", "scaled_ece", "scaled_loss"}
    assert {r["count"] for r in live.values()} == {16 * 32} and 0.25 <= live["temperature"]["value"] <= 4
    assert 0 < live["ece"]["value"] < 1 and "calibration ece" in printed
    code, _, errors = readout(*asked, "--bins", "1", "--out", tmp_path / "out")
    assert code == 2 and errors.strip().endswith("--bins=1: expected an integer of at least 2")


ADDED = '''"""--evaluate norm: the largest weight."""
from dataclasses import dataclass

from lawa_exp.config.rules import number
from lawa_exp.readout.evaluators.settings import EvaluatorSettings, flag


@dataclass(frozen=True)
class NormSettings(EvaluatorSettings):
    times: float = flag(number(above=0), "X", "what it is multiplied with", 1.0)

    def evaluator(self, request, checkpoints):
        from dataclasses import replace

        from lawa_exp.evaluation.score import Scored
        from lawa_exp.readout.evaluators.dataset import on_dataset

        made = on_dataset(request, checkpoints)

        def score(weights, split="val", samples=None, bn=None):
            largest = max(float(t.abs().max()) for t in weights.values())
            measured = {"split": "norm", "task": "weights", "metric": "largest", "value": largest}
            return Scored({"loss": self.times * largest}, None, (measured,))

        return replace(made, score=score, label="norm", no_test="weights have no splits")
'''


def test_an_evaluator_is_one_file_and_one_line(trained: Path, tmp_path: Path) -> None:
    """In a copy of the package: its flag, its rows, views, and its name among the choices."""
    for folder in ("lawa_exp", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    evaluators = tmp_path / "lawa_exp" / "readout" / "evaluators"
    (evaluators / "norm.py").write_text(ADDED)
    table = (evaluators / "__init__.py").read_text()
    line = '    perplexity="perplexity:PerplexitySettings",\n'
    (evaluators / "__init__.py").write_text(table.replace(line, line + '    norm="norm:NormSettings",\n'))
    asked = ["-m", "lawa_exp.readout", str(trained), "--k", "2", "--spacing", "20", "--out", str(tmp_path / "out")]
    options: Any = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 300}
    options["env"] = {**os.environ, "PYTHONPATH": str(tmp_path)}
    own = ["--evaluate", "norm", "--times", "2", "--view", "int8"]
    done = subprocess.run([sys.executable, *asked, *own], **options)
    assert done.returncode == 0, done.stderr
    last = read_tensors(steps_in(trained / "trajectory")[60] / "model.safetensors")
    found = rows(tmp_path / "out")
    assert dict(curve(found, "live"))[60] == 2 * max(float(t.abs().max()) for t in last.values())
    assert {name_of(r) for r in found if r["split"] == "norm"} == {
        *("live", "live@int8", "lawa-k2-s20", "lawa-k2-s20@int8")
    }
    refused = subprocess.run([sys.executable, *asked, "--evaluate", "nrm"], **options)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "did you mean norm? choices: calibration, norm, perplexity, zeroshot, or package.module" in refused.stderr
