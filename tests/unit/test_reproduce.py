"""Claims, rules and verdicts: closed forms on made-up runs, the committed claims, and a small reproduction for real."""

import csv
import gzip
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import run

from lawa_exp.launch.mistakes import check_words
from lawa_exp.reproduce import book as books
from lawa_exp.reproduce.arms import Arm, Missing, Run, measure
from lawa_exp.reproduce.judged import FIELDS, needed, resolve
from lawa_exp.reproduce.pages import escaped
from lawa_exp.reproduce.recorded import in_columns, in_rows, recorded
from lawa_exp.reproduce.reproduction import left_out
from lawa_exp.reproduce.rules import AGAINST, MET, OF_ARMS, UNDECIDED, Check, check, judge, names_in
from lawa_exp.reproduce.trained import plan_set
from lawa_exp.results.statistics import t95
from lawa_exp.system.errors import UserError

STEPS = (0, 50, 100)


def made(
    seed: int, live: tuple[float, ...], average: tuple[float, ...], test: dict[str, float], **config: float
) -> Run:
    """A run of 100 steps with losses at 0, 50 and 100 (the average's at 50 and 100)."""
    rows = [{"step": s, "split": "val", "weights": "live", "loss": v} for s, v in zip(STEPS, live, strict=True)]
    rows += [
        {"step": s, "split": "val", "weights": "lawa-k2-s5", "loss": v} for s, v in zip(STEPS[1:], average, strict=True)
    ]
    tests = [{"step": 100, "split": "test", "weights": w, "loss": v} for w, v in test.items()]
    return Run(Path(f"seed{seed}"), 100, seed, {"lr.peak": 0.1, **config}, rows, tests)


RUNS = {
    "set": [
        made(seed, (4, 3 + d, 2 + d), (2.5 + d, 1.9 + 2 * d), {"live": 2.2 + d, "lawa-k2-s5": 2.0 + 2 * d})
        for seed, d in enumerate((0.0, 0.02, 0.04))
    ]
}
ARMS = {
    "live": measure(Arm(("set",), {}), RUNS),
    "lawa": measure(Arm(("set",), {}, "lawa-*"), RUNS),
    "live50": measure(Arm(("set",), {}, at=0.5), RUNS),
    "lawa50": measure(Arm(("set",), {}, "lawa-*", at=0.5), RUNS),
}


def test_arms_are_read_on_test_at_the_end_and_on_val_before() -> None:
    assert ARMS["live"].values == {0: 2.2, 1: 2.22, 2: 2.24} and ARMS["live"].split == "test"
    assert ARMS["lawa50"].values == {0: 2.5, 1: 2.52, 2: 2.54} and ARMS["lawa50"].split == "val"
    on_val = measure(Arm(("set",), {}, split="val"), RUNS)
    assert on_val.values == {0: 2, 1: 2.02, 2: 2.04} and on_val.split == "val"


def test_peaks_and_averages_are_chosen_on_val_and_told_on_test() -> None:
    worse_on_test = [
        made(s, (4, 3, 1.5), (3, 1.4), {"live": 9.0, "lawa-k2-s5": 8.0}, **{"lr.peak": 0.2}) for s in (0, 1, 2)
    ]
    runs = {"set": RUNS["set"], "other": worse_on_test}
    chosen = measure(Arm(("set", "other"), {}, "*"), runs)
    assert chosen.values == dict.fromkeys((0, 1, 2), 8.0) and chosen.group == "lr.peak=0.2" and chosen.candidates == 2
    live = measure(Arm(("set", "other"), {"lr.peak": 0.1}), runs)
    assert live.values[0] == 2.2 and live.candidates == 1


def test_a_peak_that_lost_a_seed_is_not_chosen_by_the_others() -> None:
    """One of three runs diverged at this peak, so it is not among the finished ones; the survivors look better."""
    survivors = [made(s, (4, 3, 1.5), (3, 1.4), {"live": 1.5, "lawa-k2-s5": 1.4}, **{"lr.peak": 0.2}) for s in (0, 1)]
    chosen = measure(Arm(("set",), {}), {"set": [*RUNS["set"], *survivors]})
    assert chosen.group == "lr.peak=0.1" and set(chosen.values) == {0, 1, 2}


def test_what_is_not_there_is_missing() -> None:
    for arm in (Arm(("set",), {"lr.peak": 7}), Arm(("set",), {}, "ema-*"), Arm(("set",), {}, "lawa-*", at=0.3)):
        with pytest.raises(Missing):
            measure(arm, RUNS)


def test_differences_are_paired_by_seed() -> None:
    found = check("live - lawa > 0", ARMS)  # 0.2, 0.18, 0.16
    assert found.mean == pytest.approx(0.18) and found.n == 3 and found.state == MET
    assert found.half == pytest.approx(t95(2) * 0.02 / 3**0.5)
    assert check("lawa - live > 0", ARMS).state == AGAINST
    assert check("live - lawa > 0.17", ARMS).state == UNDECIDED and check("live - lawa > 0.17", ARMS).on_side
    assert check("live - lawa < live50 - lawa50", ARMS).state == MET
    assert check("live - lawa < 0.5 * (live50 - lawa50)", ARMS).mean == pytest.approx(0.18 - 0.25)
    assert check("-lawa + mean(live, live) > 0", ARMS).mean == pytest.approx(0.18)


def test_equality_is_an_interval_within_the_tolerance() -> None:
    assert check("abs(live - lawa) < 0.3", ARMS).state == MET
    assert check("abs(live - lawa) < 0.05", ARMS).state == AGAINST
    assert check("abs(live - lawa) < 0.2", ARMS).state == UNDECIDED


def test_savings_are_shares_of_the_budget() -> None:
    # seed 0: the live curve falls from 3 at 50 to 2 at 100, and is at 2.5, the average's value at 50, after step 75
    for name, expected in (("saved", 0.25), ("cut", 1 / 3)):
        assert check(f"{name}(lawa50, live) > 0", ARMS).mean == pytest.approx(expected)
    # the live weights' best, 2 at step 100: the average has it 8 to 10 steps before (from 2.5 to 1.9 in 50 steps)
    earlier = check("earlier(lawa, live) > 0", ARMS)
    assert earlier.mean == pytest.approx(sum((100 - (50 + 50 * 0.5 / (0.6 - d))) / 100 for d in (0, 0.02, 0.04)) / 3)
    assert check("longest(lawa, live) > 0", ARMS).mean == pytest.approx(0.25)
    assert check("window(lawa) < 0.2", ARMS).mean == pytest.approx(0.1 - 0.2)


def test_one_seed_decides_nothing() -> None:
    runs = {"set": RUNS["set"][:1]}
    arms = {"live": measure(Arm(("set",), {}), runs), "lawa": measure(Arm(("set",), {}, "lawa-*"), runs)}
    assert check("live - lawa > 0", arms).state == UNDECIDED


def test_verdicts() -> None:
    def came(*states: str, on_side: bool = False) -> str:
        return judge([Check("a > b", state, 0.0, 0.0, 3, on_side) for state in states])

    assert came(MET, MET) == "holds" and came(MET, AGAINST) == "holds in part"
    assert came(AGAINST) == "does not hold" and came(UNDECIDED) == "does not hold"
    assert came(UNDECIDED, on_side=True) == "holds in part"


@pytest.mark.parametrize(
    "rule",
    [
        *("live", "live > 0 > lawa", "live == lawa", "live.x > 0", "unknown > 0", "open('f') > 0", "live >"),
        *("abs(live) < lawa", "abs(live, lawa) < 1", "cut(live) > 0", "peak(live) > 0"),
    ],
)
def test_rules_that_are_none(rule: str) -> None:
    with pytest.raises(UserError, match="rule"):
        check(rule, ARMS)


def test_the_committed_claims_are_whole() -> None:
    book = books.load()
    assert [p.name for p in book.papers] == list(books.PAPERS)
    ids = [claim.id for paper in book.papers for claim in paper.claims]
    assert len(ids) == len(set(ids))
    for form in book.forms:
        for scale, names in form.names.items():
            for paper in book.papers:
                for claim in paper.claims:
                    used = {n for rule in claim.rules for n in names_in(rule)}
                    assert used == set(claim.arms), claim.id
                    for arm in claim.arms.values():
                        try:
                            assert set(resolve(arm, names).sets) <= set(book.sets), claim.id
                        except Missing:
                            assert form.data != "embedded" or scale != "cpu", (claim.id, form.name)
    assert {"set", *FIELDS} & {"steps", "lr.peak"} == set()
    for paper in book.papers:
        assert all(f.source and f.certainty in books.CERTAINTY for c in paper.claims for f in c.published)
    assert set(needed(book, book.papers, "cpu")) == set(book.sets)
    assert all("seed=0,1,2" in s.words["cpu"] for s in book.sets.values())


def told_on(arm: dict[str, object]) -> str:
    """The split that an arm's values are of."""
    return "val" if arm.get("at", 1) != 1 or {"split", "readout"} & set(arm) else "test"


def test_the_words_of_every_training_are_settings() -> None:
    """`~averagers.swa` was refused for a while, and the plan of a whole paper with it."""
    for training in books.load().sets.values():
        for words in training.words.values():
            check_words(shlex.split(words))


def test_no_rule_compares_val_with_test() -> None:
    for paper in books.load().papers:
        for claim in paper.claims:
            for rule in claim.rules:
                curves = {
                    n for name in OF_ARMS for call in re.findall(rf"{name}\((.*?)\)", rule) for n in call.split(", ")
                }
                assert len({told_on(claim.arms[n]) for n in names_in(rule) if n not in curves}) <= 1, (claim.id, rule)


def test_latex_has_its_own_characters_escaped() -> None:
    assert escaped("a\\{b}_c: 5% & > 16") == r"a\textbackslash{}\{b\}\_c: 5\% \& $>$ 16"


MINE = """
title: Mine
claims:
  - id: mine-gain
    says: Averaging helps.
    where: here
    setting: small
    published: [{what: gain, value: 0.1, unit: nats, source: me, certainty: printed}]
    arms: {live: {set: $main}, lawa: {set: $main, weights: $lawa}}
    rules: ["live - lawa > -9"]
    because: the end
  - id: mine-none
    says: A number.
    where: here
    setting: small
    published: []
    verdict: not comparable
    because: no reason
"""
TRAININGS = """
sets:
  tiny:
    what: small
    words:
      cpu: >-
        model.layers=1 model.width=32 model.heads=2 model.context=32 batch.size=4 lr.peak=1e-3,3e-3 lr.warmup_steps=2
        k=[2,3] spacing=10 avg=lawa evaluate.every=20 evaluate.samples=16 steps=40 seed=0,1 trainer.threads=1
forms:
  as_published: {recipe: as_published, data: embedded, names: {cpu: {main: tiny, lawa: lawa-k3-s10}}}
  fair: {recipe: fair, data: embedded, names: {cpu: {main: tiny, lawa: lawa-*}}}
"""


def test_a_small_reproduction(tmp_path: Path) -> None:
    claims = tmp_path / "claims"
    claims.mkdir()
    (claims / "mine.yaml").write_text(MINE)
    (claims / "trainings.yaml").write_text(TRAININGS)
    asked = ["mine", "--claims", str(claims), "--runs-root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    planned = run(*asked, "--plan", module="lawa_exp.reproduce")
    assert planned.returncode == 0 and not (tmp_path / "out").exists(), planned.stdout + planned.stderr
    assert "160" in planned.stdout  # four trainings of 40 steps
    done = run(*asked, module="lawa_exp.reproduce")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tiny: 4 of 4 trainings are missing" in done.stdout
    page = (tmp_path / "out" / "mine.md").read_text()
    assert "as published: " not in page.split("## mine-gain")[0].split("disagree")[1]
    assert "`live - lawa > -9`" in page and "best of 4 on val" in page and "**not comparable** (no reason)" in page
    with (tmp_path / "out" / "mine.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["form"], line["verdict"]) for line in lines[:2]] == [("as_published", "holds"), ("fair", "holds")]
    assert (tmp_path / "out" / "mine.tex").read_text().count("\\\\") == 3  # a heading and two claims
    again = run(*asked, module="lawa_exp.reproduce")  # everything is there: nothing is trained
    assert again.returncode == 0 and "missing" not in again.stdout
    assert (tmp_path / "out" / "mine.md").read_text() == page
    table = tmp_path / "out" / "curves.jsonl.gz"
    shutil.rmtree(tmp_path / "runs")  # the table has all that judging needs
    recomputed = [*asked[:-1], str(tmp_path / "recomputed"), "--recompute", str(table)]
    done = run(*recomputed, module="lawa_exp.reproduce")
    assert done.returncode == 0 and "holds" in done.stdout, done.stdout + done.stderr
    for name in ("mine.csv", "mine.tex"):
        assert (tmp_path / "recomputed" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    again = [*asked[:5], "--recompute", str(table), "--claim", "mine-gain", "--seed", "1"]
    done = run(*again, module="lawa_exp.reproduce")
    assert done.returncode == 0 and "losses, of 3 weights, are equal to the last digit" in done.stdout, done.stdout
    assert len([p for p in (tmp_path / "runs").iterdir() if (p / "DONE").exists()]) == 1
    written = gzip.decompress(table.read_bytes())
    table.write_bytes(gzip.compress(re.sub(rb'("split":"test".*?"loss":\d\.\d*)\d', rb"\g<1>0", written)))
    done = run(*again, module="lawa_exp.reproduce")
    assert done.returncode == 1 and "recorded losses differ, by at most" in done.stdout, done.stdout
    assert f"{tmp_path / 'runs'}" in done.stdout and "was trained here before, and is compared as it is" in done.stdout
    done = run(*again[:-1], "7", module="lawa_exp.reproduce")
    assert done.returncode == 2 and "--seed=7: the recorded runs of mine-gain have 0, 1" in done.stderr
    table.write_bytes(table.read_bytes()[:-20])
    done = run(*recomputed, module="lawa_exp.reproduce")
    assert done.returncode == 2 and "not a table of curves" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_stopped_it_goes_on_where_it_was(tmp_path: Path) -> None:
    claims, runs = tmp_path / "claims", tmp_path / "runs"
    claims.mkdir()
    (claims / "mine.yaml").write_text(MINE)
    (claims / "trainings.yaml").write_text(TRAININGS.replace("steps=40", "steps=2000"))
    asked = [sys.executable, "-m", "lawa_exp.reproduce", "mine", "--claims", str(claims), "--runs-root", str(runs)]
    with (tmp_path / "said").open("w") as said, subprocess.Popen(asked, stdout=said, stderr=said) as process:
        while not list(runs.glob("*/resume/step_*")):
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75, (tmp_path / "said").read_text()
    (begun,) = [p for p in runs.iterdir() if (p / "STOPPED").exists()]
    starts = len((begun / "provenance.jsonl").read_text().splitlines())
    (claims / "trainings.yaml").write_text(TRAININGS)  # the same trainings, which have come further than is asked now
    done = run(*asked[3:], module="lawa_exp.reproduce")
    assert done.returncode == 0 and (runs / "reproduce" / "cpu" / "mine.md").exists(), done.stdout + done.stderr
    assert len((begun / "provenance.jsonl").read_text().splitlines()) == starts + 1


def test_rows_come_back_from_columns_as_they_were() -> None:
    live = {"split": "val", "weights": "live"}
    rows = [
        {"step": 1, **live, "loss": 2.0, "bn": "latest"},
        {"step": 1, "split": "val", "weights": "lawa-k3-s10", "averager": "lawa", "k": 3, "loss": 1.0, "accuracy": 1},
        {"step": 2, **live, "loss": None, "nonfinite": ["loss"], "bn": "latest"},
    ]
    assert in_rows(in_columns(rows)) == rows
    assert in_rows(in_columns(rows[2:])) == rows[2:]


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "curves.jsonl.gz"
    with pytest.raises(UserError, match=r"no such file; expected curves\.jsonl\.gz, which a"):
        recorded(table)
    for content in (b"", b'{"a": 1}\n', b'{"facts": []}\n{"a": 1}\n', b"[]\n", b"1\n"):
        table.write_bytes(gzip.compress(content))
        with pytest.raises(UserError, match="not a table of curves, as a reproduction writes"):
            recorded(table)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ewo"], "ewo: did you mean ewa"),
        (["ewa", "--scale", "cpo"], "invalid choice: 'cpo'"),
        (["ewa", "--claims", "/nowhere"], "--claims /nowhere: expected a folder with trainings.yaml"),
        (["ewa", "--claim", "ewa-gain", "--plan"], "--plan does not go with --claim, which trains one run here, now"),
        (["ewa", "--seed", "3"], "--seed=3 is of --claim, which is missing"),
    ],
)
def test_mistakes(words: list[str], told: str) -> None:
    done = run(*words, module="lawa_exp.reproduce")
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_sets_without_their_data_are_left_out_in_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAWA_DATA", raising=False)
    names = ("shakespeare_cosine", "shakespeare_annealed")
    sets = books.load(books.FOLDER).sets
    plans = [plan_set(sets[name], "cpu", "runs") for name in names]
    (line,) = left_out(plans, "cpu")
    assert line.startswith("left out: shakespeare_cosine, shakespeare_annealed: dataset=tinyshakespeare: ")
    assert "`python -m lawa_exp.data prepare tinyshakespeare --from SOURCE`" in line and "\n" not in line
    assert list(left_out(plans, "gpu")) == []
