"""The published Pythia evaluations as live rows: of a table made here, and of the whole one where it is."""

import gzip
import os
from pathlib import Path

import pytest

from lawa_exp.published import PAPER_TASKS, main, pythia_rows, table
from lawa_exp.system.errors import UserError

WHOLE = Path(os.environ.get("LAWA_DATA", "")) / "pythia_evals" / "pythia_evals_long.csv.gz"
TABLE = """suite,model,shot,step,task,metric,value,stderr
pythia-v1,pythia-70m,zero-shot,1000,piqa,acc,0.5,0.01
pythia-v1,pythia-70m,zero-shot,1000,lambada_openai,acc,0.25,0.01
pythia-v1,pythia-70m,zero-shot,1000,lambada_openai,ppl,99.5,
pythia-v1,pythia-70m,baseline,1000,piqa,acc,0.9,0.01
pythia-v1,pythia-70m,baseline,2000,piqa,acc,0.75,0.01
pythia-v1,pythia-70m,intervention,2000,lambada_openai,acc,0.1,0.01
pythia-v1,pythia-70m,five-shot,1000,piqa,acc,0.6,0.01
pythia-v0,pythia-70m,zero-shot,1000,piqa,acc,0.7,0.01
pythia-v1,pythia-160m,zero-shot,1000,piqa,acc,0.8,0.01
"""


def test_zero_shot_rows_of_the_model_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evals.csv"
    path.write_text(TABLE)
    (tmp_path / "evals.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    rows = pythia_rows(path, "pythia-70m", ["lambada_openai", "piqa"])
    assert rows == pythia_rows(tmp_path / "evals.csv.gz", "pythia-70m", ["lambada_openai", "piqa"])
    at = {"split": "zeroshot", "weights": "live"}
    assert rows[1] == {
        **{"step": 1000, **at, "task": "lambada_openai", "metric": "perplexity", "value": 99.5},
        "source": "pythia-v1 zero-shot",
    }
    assert [(r["step"], r["task"], r["value"]) for r in rows] == [
        *[(1000, "lambada_openai", 0.25), (1000, "lambada_openai", 99.5), (1000, "piqa", 0.5), (2000, "piqa", 0.75)]
    ]
    assert table(rows) == [
        *[["step", "lambada_openai", "piqa", "average"], ["1,000", "0.2500", "0.5000", "0.3750"]],
        ["2,000", "", "0.7500", ""],
    ]
    asked = [str(path), "--tasks", "piqa", "--out", str(tmp_path / "out")]
    assert main([*asked, "--model", "pythia-70m"]) == 0
    assert (
        "0.7500" in capsys.readouterr().out and len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2
    )
    assert main([*asked, "--model", "pythia-71m"]) == 2
    assert "did you mean pythia-70m" in capsys.readouterr().err


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "evals.csv"
    path.write_text(TABLE)
    with pytest.raises(UserError, match="--tasks piqq: not published for pythia-70m; did you mean piqa"):
        pythia_rows(path, "pythia-70m", ["piqq"])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected a table with the columns suite, model"):
        pythia_rows(path, "pythia-70m")
    path.write_text(TABLE.replace("1000,piqa,acc,0.5", "x,piqa,acc,0.5"))
    with pytest.raises(UserError, match="step=x in line 2"):
        pythia_rows(path, "pythia-70m", ["piqa"])
    path.write_text(TABLE.replace("1000,piqa,acc,0.5", "1000,piqa,acc,"))
    with pytest.raises(UserError, match="value= in line 2 is no number"):
        pythia_rows(path, "pythia-70m", ["piqa"])
    path.write_text(TABLE + "pythia-v1,pythia-70m,zero-shot,30")
    with pytest.raises(UserError, match="line 11 is cut short"):
        pythia_rows(path, "pythia-70m", ["piqa"])
    cut = tmp_path / "evals.csv.gz"
    cut.write_bytes(gzip.compress(TABLE.encode())[:60])
    with pytest.raises(UserError, match="is damaged"):
        pythia_rows(cut, "pythia-70m", ["piqa"])


@pytest.mark.data
@pytest.mark.skipif(not WHOLE.is_file(), reason="needs pythia_evals in LAWA_DATA")
def test_the_paper_s_tasks_over_the_training() -> None:
    rows = pythia_rows(WHOLE, "pythia-6.9b-deduped")
    at_end = {(r["task"], r["metric"]): r["value"] for r in rows if r["step"] == 143000}
    assert {task for task, _ in at_end} == set(PAPER_TASKS)
    assert at_end["lambada_openai", "acc"] == pytest.approx(0.6889, abs=5e-5)
    assert {3000, 13000, 133000, 134000, 142000} <= {r["step"] for r in rows}
    accuracy = {r["step"]: r["value"] for r in rows if (r["task"], r["metric"]) == ("lambada_openai", "acc")}
    assert accuracy[143000] > accuracy[33000] > accuracy[3000] > accuracy[0]
