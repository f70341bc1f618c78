"""The committed notebooks: executed again on small data, and as they are."""

import runpy
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import run

from lawa_exp.reproduce.book import FOLDER

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


@pytest.mark.parametrize("name", NAMES)
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
