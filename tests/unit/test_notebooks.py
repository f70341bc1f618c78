"""The committed notebooks: executed again on small data, and as they are."""

import ast
import math
import runpy
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest
import scipy.stats
from helpers import run

import lawa_exp
from lawa_exp.reproduce.book import FOLDER
from lawa_exp.storage.rows import read_rows
from lawa_exp.system.errors import UserError

HERE = Path(__file__).parents[2] / "notebooks"
NAMES = ("trajectory_and_averages", "lawa_claims", "rates_spacing_and_fair_baselines")
TOOLS = runpy.run_path(str(HERE / "execute.py"))

TRAININGS = """
sets:
  cosine: {what: small, words: {cpu: &cosine "%s lr=cosine"}}
  annealed: {what: small, words: {cpu: &annealed "%s lr=cosine_to_zero"}}
  mlm: {what: shares its trainings, words: {cpu: *cosine}}
  mlm_annealed: {what: shares its trainings, words: {cpu: *annealed}}
forms:
  as_published:
    recipe: as_published
    data: embedded
    names:
      cpu: &names
        {main: cosine, cosine: cosine, annealed: annealed, mlm: mlm, mlm_main: mlm, mlm_annealed: mlm_annealed,
         low: 1.0e-3, usual: 1.0e-3, high: 1.0e-2, lawa: lawa-k2-s4, near: lawa-k2-s2, wide: lawa-k2-s4,
         ema: ema-d0.5-e1, ema_published: ema-d0.5-e1, mlm_lawa: lawa-k2-s4, mlm_lawa_published: lawa-k2-s4}
  fair:
    recipe: fair
    data: embedded
    names: {cpu: {<<: *names, main: annealed, lawa: lawa-*, ema: ema-*, mlm_main: mlm_annealed, mlm_lawa: lawa-*}}
"""
WORDS = (
    "model.layers=1 model.width=32 model.heads=2 model.context=32 batch.size=4 steps=40 lr.warmup_steps=2 "
    "lr.peak=1e-3,1e-2 seed=0,1 avg=[lawa,ema] k=[2,3] spacing=[2,4] averagers.ema.decay=[0.5,0.9] "
    "evaluate.every=4 evaluate.samples=16 save.every=40 trainer.threads=1"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The committed claims on eight trainings of 40 steps."""
    folder = tmp_path_factory.mktemp("small")
    claims, runs = folder / "claims", folder / "runs"
    claims.mkdir()
    for name in ("lawa", "ewa"):
        shutil.copy(FOLDER / f"{name}.yaml", claims)
    (claims / "trainings.yaml").write_text(TRAININGS % (WORDS, WORDS))
    for schedule in ("cosine", "cosine_to_zero"):
        done = run("-m", *WORDS.split(), f"lr={schedule}", f"runs_root={runs}")
        assert done.returncode == 0, done.stdout + done.stderr
    return {"LAWA_CLAIMS": str(claims), "LAWA_RUNS": str(runs), "LAWA_STEPS": "100"}


DAILY = "rates_spacing_and_fair_baselines"  # the others take half a minute of CPU


@pytest.mark.parametrize("name", [n if n == DAILY else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_they_execute(name: str, small: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # execute adds this Python's
    for key, value in small.items():
        monkeypatch.setenv(key, value)
    executed = TOOLS["execute"](HERE / f"{name}.ipynb")
    text = "\n".join(TOOLS["texts"](executed))
    expected = {
        "trajectory_and_averages": ["DONE", "rows, all equal", "the bytes of the average made in training"],
        "lawa_claims": ["mlm: 4 finished runs", "lawa-mlm-unannealed", "holds"],
        "rates_spacing_and_fair_baselines": ["ema-d0.5-e1", "LAWA at the high rate", "as published"],
    }
    for words in expected[name]:
        assert words in text, (words, text)
    committed = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    assert images(executed) == images(committed) > 0


def test_claims_are_the_numbers_of_the_runs(small: dict[str, str]) -> None:
    matplotlib.use("Agg")
    paper = lawa_exp.claims("lawa", small["LAWA_RUNS"], folder=small["LAWA_CLAIMS"])
    assert set(paper.runs) == {"mlm", "mlm_annealed"} and all(len(runs) == 4 for runs in paper.runs.values())
    high = {"lr.peak": 0.01}
    live, lawa = paper.arm("mlm", where=high), paper.arm("mlm", "lawa-k2-s*", where=high)
    of_seed: dict[int, dict[str, float]] = {}
    for one in (one for one in paper.runs["mlm"] if one.config["lr.peak"] == 0.01):
        rows = read_rows(one.path / "readouts" / "test" / "metrics.jsonl")
        of_seed[one.config["seed"]] = {r["weights"]: r["loss"] for r in rows if r["step"] == 40}
    for arm in (live, lawa):
        assert arm.split == "test" and arm.values == {seed: losses[arm.weights] for seed, losses in of_seed.items()}
    gain, each = paper.gain("mlm", "lawa-k2-s*", where=high), [live.values[s] - lawa.values[s] for s in (0, 1)]
    half = scipy.stats.t.ppf(0.975, 1) * abs(each[0] - each[1]) / 2  # sd / sqrt(2) of two values
    assert gain == live - lawa and gain.n == 2
    assert (gain.mean, gain.half) == pytest.approx((sum(each) / 2, half), rel=1e-3)
    assert math.isnan(paper.gain("mlm", "lawa-k2-s4", at=0.05).mean)  # of two snapshots there is one
    rates = [r for r in read_rows(live.runs[0].path / "metrics.jsonl") if r["split"] == "train"]
    assert live.rates == {r["step"]: r["lr"] for r in rates} and sorted(live.curve) == sorted(live.curves[0])
    claim = paper["lawa-mlm-unannealed"]
    published = claim.outcomes[0]
    assert [o.form for o in claim.outcomes] == ["as published", "fair"] and list(published.arms) == [
        *("live", "lawa", "annealed", "annealed_lawa")
    ]
    mine = paper.checks[(paper.checks["claim"] == claim.id) & (paper.checks["form"] == "as_published")]
    first = (published.arms["live"] - published.arms["lawa"]).mean
    first -= (published.arms["annealed"] - published.arms["annealed_lawa"]).mean
    assert mine["rule"].tolist() == claim.rules and mine["mean"].iloc[0] == pytest.approx(first, abs=1e-12)
    arms = paper.arms[(paper.arms["claim"] == claim.id) & (paper.arms["form"] == "as_published")]
    assert arms[arms["arm"] == "live"].set_index("seed")["value"].to_dict() == published.arms["live"].values
    assert set(paper.published["claim"]) <= {c.id for c in paper} and claim.says in str(paper)
    ewa = lawa_exp.claims("ewa", small["LAWA_RUNS"], folder=small["LAWA_CLAIMS"])
    assert ewa.plot("gain_against_rate").axes[0].lines
    for wrong, message in (
        (lambda: paper["lawa-mlm"], "lawa has no such claim; did you mean"),
        (lambda: paper.arm("mln"), "mln: did you mean mlm"),
        (lambda: paper.arm("mlm", "swa-*"), "no value at 100% of the budget"),
        (lambda: paper.plot("early"), "early: the claims of lawa have no plots"),
        (lambda: ewa.plot("earl"), "earl: did you mean early"),
        (lambda: lawa_exp.claims("lawas"), "lawas: did you mean lawa"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()


@pytest.mark.parametrize("name", NAMES)
def test_they_use_public_names_alone(name: str) -> None:
    cells = nbformat.read(HERE / f"{name}.ipynb", as_version=4).cells
    code = "\n".join(c.source for c in cells if c.cell_type == "code" and not c.source.startswith("%%"))
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {a.name if isinstance(n, ast.Import) else n.module for n in imports for a in n.names}
    assert {n for n in names if n and n.startswith("lawa_exp")} == {"lawa_exp"}


@pytest.mark.parametrize("name", NAMES)
def test_they_are_committed_with_their_outputs(name: str) -> None:
    committed = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert committed.metadata == TOOLS["METADATA"] and not any(cell.metadata for cell in committed.cells)
    assert images(committed) > 0
    assert not any("/home/" in text or "/tmp/" in text for text in TOOLS["texts"](committed))


def images(notebook: Any) -> int:
    return sum("image/png" in o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", ()))


def test_an_output_that_names_this_machine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import sys; print(sys.prefix)")])
    nbformat.write(notebook, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.ipynb: its output names .*, a folder of this machine"):
        TOOLS["execute"](path)
    assert path.read_bytes() == before
