"""The papers' set-ups, composed through the real plan and held against what was published, without any data."""

import functools
import subprocess
import sys

import pytest
import yaml

from lawa_exp.axes.model.papers_names import PAPERS_NAMES
from lawa_exp.launch.compose import compose, read
from lawa_exp.reproduce import configurations
from lawa_exp.reproduce.book import CERTAINTY, PAPERS
from lawa_exp.reproduce.configurations import FACTS, check, main, table
from lawa_exp.system.errors import UserError

VERDICTS = ("agrees", "differs", "not published", "not built")
checked = functools.cache(check)


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("LAWA_DATA", "LAWA_TOKENIZER"):
        monkeypatch.delenv(variable, raising=False)


def found(paper, setup, quantity, step=None):
    """The first row of that quantity in the set-up whose name begins so."""
    return next(
        r for r in checked(paper) if r.setup.startswith(setup) and (r.quantity, r.step) == (quantity, step or r.step)
    )


@pytest.mark.parametrize("paper", PAPERS)
def test_every_fact_agrees_or_says_why_not(paper):
    rows = checked(paper)
    for row in rows:
        assert row.verdict in VERDICTS
        if row.verdict == "agrees":
            assert abs(row.ours - row.published) <= row.tolerance * abs(row.published) + 1e-12, row
        if row.verdict == "not published":
            assert row.published is None and row.ours is not None and not row.source
        else:
            assert row.certainty in CERTAINTY and row.source and row.published is not None, row
        assert (row.ours is None) == (row.verdict == "not built")
    facts = [fact for setup in yaml.safe_load(FACTS.read_text())[paper] for fact in setup["facts"]]
    # a reason that is not needed any more is as wrong as one that lacks
    for verdict, key in (("differs", "because"), ("not built", "not_built")):
        reasons = [row.reason for row in rows if row.verdict == verdict]
        given = [fact[key] for fact in facts if fact.get(key)]
        assert len(reasons) == len(given) and all(r.endswith(g) for r, g in zip(reasons, given, strict=True))


@pytest.mark.parametrize("paper", ["lawa", "ewa"])
def test_every_set_up_has_what_a_plan_shows(paper):
    rows = checked(paper)
    setups = {row.setup for row in rows}
    for setup in setups:
        quantities = {row.quantity for row in rows if row.setup == setup}
        assert quantities >= {"parameters", "steps", "rate", "snapshots", "disk", "flops", "gpu_hours"}
    assert {row.setup for row in rows if "recipe=fair" in row.words} == {s for s in setups if s.endswith(", fair")}


def test_known_results():
    medium = found("ewa", "GPT-2 medium", "parameters")
    assert (medium.ours, medium.verdict) == (354_599_936, "differs")
    assert found("ewa", "GPT-2 small", "parameters").verdict == "agrees"
    hours = found("ewa", "Pythia 6.9B", "gpu_hours")
    assert hours.verdict == "agrees" and hours.ours == pytest.approx(29_613, abs=1) and "35%" in hours.reason
    assert found("lawa", "RoBERTa", "rate", 27_200).ours == pytest.approx(4.25217e-4, rel=1e-5)  # 85% of the peak
    assert found("lawa", "RoBERTa-base on WikiText-103, fair", "rate", 27_200).ours == 0
    assert found("lawa", "ResNet-50", "gpu_hours").published == 90 * 26 * 4 / 60


def test_a_plan_calls_the_models_what_the_papers_call_them():
    names = {}
    for row in (row for paper in ("lawa", "ewa") for row in checked(paper)):
        if row.quantity == "parameters" and row.published and "recipe=fair" not in row.words:
            names.setdefault(row.words.split()[0].removeprefix("model="), row)
    assert len(names) == 15
    for model, row in names.items():
        in_words = f"{row.published / 1e6:g}M" if row.published < 1e9 else f"{row.published / 1e9:g}B"
        if not model.startswith("resnet"):
            assert in_words in PAPERS_NAMES[model]


def test_a_wrong_configuration_is_noticed(tmp_path, monkeypatch):
    content = yaml.safe_load(FACTS.read_text())
    lines = {"quantity": "steps", "unit": "steps", "certainty": "printed", "source": "here"}
    facts = [lines | {"value": v, **more} for v, more in ((100, {}), (101, {}), (101, {"tolerance": 0.01}))]
    facts.append(lines | {"quantity": "optimizer.beta2", "value": 0.98, "because": "of this"})
    facts.append(lines | {"quantity": "averagers.lawa.k", "value": 5})
    words = "model=gpt2_small steps=100 lr.warmup_steps=1"
    content["ewa"] = [{"setup": "short", "words": words, "machine": "a100", "facts": facts}]
    monkeypatch.setattr(configurations, "FACTS", tmp_path / "facts.yaml")
    configurations.FACTS.write_text(yaml.safe_dump(content))
    rows = check("ewa")
    assert [row.verdict for row in rows[:5]] == ["agrees", "differs", "agrees", "differs", "agrees"]
    assert rows[3].ours == 0.95 and rows[3].reason == "of this"
    assert {row.verdict for row in rows[5:]} == {"not published"}
    assert table(rows).splitlines()[-1] == "3 agrees, 2 differs, 0 not built, 6 not published"


def test_the_words_are_what_trains():
    """The command line of a set-up composes to what was checked, its recipe included."""
    row = found("ewa", "GPT-2 small on OpenWebText, fair", "rate")
    ((values, overrides),), _ = compose(row.words.split())
    assert read(values, overrides)[0].recipe == "fair"


def test_the_command(capsys):
    with pytest.raises(UserError, match="ewaa is no paper here; did you mean ewa"):
        check("ewaa")
    assert main(["anytime"]) == 0
    printed = capsys.readouterr().out
    assert "### OLMo 150M on C4" in printed and "| not built |" in printed and "plan=true`" in printed


def test_help_is_quick():
    code = "import sys; from lawa_exp.reproduce import configurations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
