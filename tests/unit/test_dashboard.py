"""`python -m lawa_exp.dashboard` on a real sweep, opened and clicked through in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import CHROMIUM, Page, browser
from helpers import markers, run, tiny

from lawa_exp.dashboard.__main__ import main

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")

HOSTILE = "ValueError: </script><img src=x onerror=alert(1)>"
ASKED = tiny("evaluate.every=10", "k=[2,3]", "spacing=[5,10]", "averagers.swa.every=5", "trajectory.every=5")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rates with two seeds, four windows each. Not to be changed."""
    root = tmp_path_factory.mktemp("a sweep")  # links have to be quoted
    done = run("-m", *ASKED, "lr.peak=0.003,0.01", "seed=0,1", f"runs_root='{root}'", "sweep=small", warm=True)
    assert done.returncode == 0, done.stderr
    return root / "sweeps" / "small"


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(sweep: Path, tab: Page) -> Iterator[Page]:
    """The sweep's page, open; its scripts must have raised nothing when the test is over."""
    if not (sweep / "dashboard.html").exists():
        assert main([str(sweep)]) == 0
    yield show(tab, sweep / "dashboard.html")
    assert tab.errors == []


def show(tab: Page, path: Path) -> Page:
    tab.errors.clear()
    tab.requested.clear()
    tab.size(1400, 1000)
    tab.open(path)
    return tab


def column(page: Page, name: str) -> list[str]:
    heads = page.texts("#table th")
    return page.texts(f"#table tbody td:nth-child({heads.index(name) + 1})")


def test_the_page_needs_nothing_beside_it(page: Page, sweep: Path) -> None:
    assert set(page.requested) == {(sweep / "dashboard.html").as_uri()}
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", (sweep / "dashboard.html").read_text())
    assert page.texts("h1") == ["small"] and "python -m lawa_exp" in page.texts("#about")[0]


def test_the_table_has_a_row_for_each_run_with_its_settings(page: Page, sweep: Path) -> None:
    runs = {Path(e["run_dir"]).name for e in json.loads((sweep / "manifest.json").read_text())["entries"]}
    assert set(column(page, "run")) == runs and len(runs) == 4
    assert list(zip(column(page, "lr.peak"), column(page, "seed"), strict=True)) == [
        ("0.003", "0"),
        ("0.003", "1"),
        ("0.01", "0"),
        ("0.01", "1"),
    ]
    assert column(page, "state") == ["done"] * 4 and column(page, "step") == ["60 of 60"] * 4
    live = []
    for name in column(page, "run"):
        rows = [json.loads(line) for line in (sweep.parent.parent / name / "metrics.jsonl").read_text().splitlines()]
        live += [r["loss"] for r in rows if (r["step"], r["split"], r["weights"]) == (60, "val", "live")]
    assert column(page, "val loss, live") == [f"{loss:.4f}" for loss in live]


def test_a_click_on_a_head_sorts_and_another_turns_it_round(page: Page) -> None:
    before = [float(text) for text in column(page, "val loss, live")]
    assert before not in (sorted(before), sorted(before, reverse=True)), "as it is, nothing could be seen"
    page.click("#table th", "val loss, live")
    assert [float(text) for text in column(page, "val loss, live")] == sorted(before)
    assert page.evaluate("document.querySelector('[aria-sort]').innerText.trim()") == "val loss, live"
    page.click("#table th", "val loss, live")
    assert [float(text) for text in column(page, "val loss, live")] == sorted(before, reverse=True)


def test_the_filter_takes_words_and_settings(page: Page) -> None:
    page.type("#filter", "seed=1")
    assert column(page, "seed") == ["1", "1"] and page.texts("#count") == ["2 of 4 shown"]
    assert len(page.texts("#maps table")) == 2
    page.type("#filter", "seed=1 constant0.01")
    assert column(page, "lr.peak") == ["0.01"]
    assert page.texts("#details h2") == ["lr.peak=0.01 seed=1"], "a run alone shows its details"
    page.type("#filter", "nothing like it")
    assert page.texts("#table tbody tr") == [] and "Nothing evaluated" in page.texts("#chart")[0]
    page.type("#filter", "")
    assert len(column(page, "run")) == 4


def test_curves_are_switched_on_and_off_by_averager(page: Page) -> None:
    curves = "document.querySelectorAll('#chart path.series').length"
    windows = ["lawa-k2-s5", "lawa-k2-s10", "lawa-k3-s5", "lawa-k3-s10"]
    assert page.texts("#legend button") == ["live", "ema-d0.9-e1", *windows, "swa-e5-from20", "all", "only live"]
    page.click("#legend button", "all")
    assert page.evaluate(curves) == 4 * 7
    page.click("#legend button", "lawa-k2-s5")
    assert page.evaluate(curves) == 4 * 6
    page.click("#legend button", "live")
    assert page.evaluate(curves) == 4 * 5 and page.evaluate("document.querySelector('#chart path.live')") is None
    page.click("#legend button", "lawa-k2-s5")
    page.click("#legend button", "live")
    page.click("#legend button", "only live")
    assert page.evaluate(curves) == 4
    axes = page.evaluate("[...document.querySelectorAll('#chart text')].map(e => e.textContent)")
    assert "step (optimizer updates)" in axes and "validation loss (nats per token)" in axes


def test_curves_are_coloured_by_a_setting(page: Page) -> None:
    """Two rates: two colours over the four runs' live curves, in the legend too; then by weights again."""
    strokes = "[...document.querySelectorAll('#chart path.series')].map(p => getComputedStyle(p).stroke)"
    page.click("#legend button", "only live")
    assert len(set(page.evaluate(strokes))) == 1
    page.click("#paint button", "colour: lr.peak")
    painted = page.evaluate(strokes)
    assert len(painted) == 4 and len(set(painted)) == 2
    assert page.texts("#legend span.value") == ["lr.peak=0.003", "lr.peak=0.01"]
    page.click("#paint button", "colour: weights")
    assert len(set(page.evaluate(strokes))) == 1 and page.texts("#legend span.value") == []


def test_pointing_at_a_curve_tells_its_value(page: Page, sweep: Path) -> None:
    page.type("#filter", "lr.peak=0.01 seed=0")
    page.click("#legend button", "only live")
    end = page.evaluate("(({x, y}) => [x, y])(points.find(p => p.step === 60))")
    box = page.evaluate("(b => [b.width, b.height])(document.querySelector('#chart svg').getBoundingClientRect())")
    page.point("#chart svg", dx=end[0] - box[0] / 2, dy=end[1] - box[1] / 2)
    told = page.texts("#tip div")
    assert told == ["lr.peak=0.01 seed=0", f"live, step 60: {column(page, 'val loss, live')[0]}"]


def test_a_row_is_singled_out_by_a_click(page: Page) -> None:
    assert page.evaluate("document.querySelector('#details').hidden")
    page.click("#table tbody tr:nth-child(2) td:nth-child(2)")
    assert page.texts("#details h2") == ["lr.peak=0.003 seed=1"] and len(page.texts("#maps table")) == 1
    assert page.evaluate("document.querySelectorAll('#chart .picked .series.on').length") > 0
    page.type("#filter", "seed=0")
    assert page.evaluate("document.querySelector('#chart .picked')") is None, "what is filtered out dims nothing"
    page.type("#filter", "")
    page.click("#table tbody tr:nth-child(2) td:nth-child(2)")
    assert page.evaluate("document.querySelector('#details').hidden") and len(page.texts("#maps table")) == 4


def test_the_numbers_are_those_of_a_read_out(page: Page, sweep: Path) -> None:
    page.click("#table tbody tr:nth-child(1) td:nth-child(2)")
    folder = sweep.parent.parent / column(page, "run")[0]
    name = ["--name", "compared"]
    done = run(str(folder), "--k", "2,3", "--spacing", "5,10", *name, module="lawa_exp.readout", warm=True)
    assert done.returncode == 0, done.stderr
    table = [[c.strip() for c in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("|")]
    saved = table[0].index("steps saved")
    first = table[: next((i for i, row in enumerate(table) if len(row) != len(table[0])), len(table))]
    told = {row[0]: (row[1], row[saved]) for row in first if row[0].startswith("lawa")}
    lines = [text.split("\t") for text in page.texts(".columns > table:first-child tr")]
    shown = {line[0]: (line[1], line[3]) for line in lines}
    assert len(told) == 4 and {id: shown[id] for id in told} == told
    cells = [text.split("\n")[0] for text in page.texts("#maps td")]
    ordered = [told[f"lawa-k{k}-s{spacing}"][1] for k in (3, 2) for spacing in (5, 10)]
    assert cells == ordered
    shutil.rmtree(folder / "readouts" / "compared")


def test_means_over_seeds_are_those_of_the_summary(page: Page, sweep: Path) -> None:
    page.click("#mode button", "mean over seeds")
    assert column(page, "lr.peak") == ["0.003", "0.01"] and column(page, "seeds") == ["2", "2"]
    summary = (sweep / "summary.md").read_text()
    parts = zip(column(page, "val loss, live"), column(page, "best average"), column(page, "to live"), strict=True)
    for live, best, gap in parts:
        assert f"| {live} |" in summary
        line = next(x for x in summary.splitlines() if f" {best} |" in x and f" {gap} |" in x)
        assert "±" in line
    page.click("#mode button", "each run")
    assert len(column(page, "run")) == 4


def test_heat_maps_show_losses_too(page: Page) -> None:
    assert all(re.match(r"([+-][\d,]+|> [\d,]+)", text) for text in page.texts("#maps td"))
    page.click("#colours button", "loss less live")
    assert all(re.match(r"[+-]\d\.\d{4}", text) for text in page.texts("#maps td"))
    assert "nats" in page.texts("#scale")[0] and "val loss less live" in page.texts("#maps caption")[0]


def test_links_lead_into_the_run_folders(page: Page, sweep: Path, tab: Page) -> None:
    links = page.evaluate("[...document.querySelectorAll('#table a')].map(a => a.href)")
    assert [Path(unquote(link.removeprefix("file://"))).is_dir() for link in links] == [True] * 4
    page.click("#table tbody tr:nth-child(1) td:nth-child(2)")
    files = page.evaluate("[...document.querySelectorAll('.files a')].map(a => a.href)")
    assert {Path(link).name for link in files} == {"report.md", "curves.png", "config.yaml", "metrics.jsonl"}
    assert all(Path(unquote(link.removeprefix("file://"))).is_file() for link in files)
    tab.loaded = False
    page.click("#table tbody tr:nth-child(1) a")
    while not tab.loaded:
        tab._note(tab._next())
    assert "config.yaml" in page.evaluate("document.body.innerText")


def test_states_are_told_and_filtered_and_no_text_becomes_markup(sweep: Path, tab: Page, tmp_path: Path) -> None:
    root = shutil.copytree(sweep.parent.parent, tmp_path / "runs")
    failed, stopped, gone = (root / p.name for p in sorted(sweep.parent.parent.glob("gpt_*"))[:3])
    (failed / "DONE").unlink()
    (failed / "FAILED").write_text(json.dumps({"reason": HOSTILE}))
    (stopped / "DONE").unlink()
    (stopped / "STOPPED").write_text(json.dumps({"step": 30}))
    shutil.rmtree(gone)
    manifest = root / "sweeps" / "small" / "manifest.json"
    content = json.loads(manifest.read_text().replace(str(sweep.parent.parent), str(root)))
    del content["crc32"]  # as who edits it by hand does
    manifest.write_text(json.dumps(content))
    for folder in (failed, stopped):
        (folder / ".checksums").unlink()
    assert main([str(manifest.parent), "--out", str(tmp_path / "page.html")]) == 0
    page = show(tab, tmp_path / "page.html")
    assert page.texts("#states button") == ["1 failed", "1 stopped", "1 not started", "1 done"]
    page.click("#table th", "state")
    assert column(page, "state") == ["failed", "stopped", "not started", "done"]
    assert HOSTILE in column(page, "note") and page.evaluate("document.images.length") == 0
    assert column(page, "step")[1] == "30 of 60"
    page.click("#states button", "1 done")
    page.click("#states button", "1 stopped")
    assert column(page, "state") == ["failed", "not started"] and page.errors == []


def test_one_run_alone_shows_its_details_at_once(sweep: Path, tab: Page, tmp_path: Path) -> None:
    folder = next(sweep.parent.parent.glob("gpt_*"))
    assert main([str(folder), "--out", str(tmp_path / "one.html")]) == 0
    page = show(tab, tmp_path / "one.html")
    assert len(page.texts("#table tbody tr")) == 1 and page.texts("#details h2") == [folder.name]
    assert len(page.texts("#maps table")) == 1 and page.texts("#mode button") == [] and page.errors == []


def test_a_folder_of_runs_is_told_apart_by_what_they_differ_in(sweep: Path, tab: Page, tmp_path: Path) -> None:
    assert main([str(sweep.parent.parent), "--out", str(tmp_path / "all.html")]) == 0
    page = show(tab, tmp_path / "all.html")
    assert sorted(column(page, "lr.peak")) == ["0.003", "0.003", "0.01", "0.01"]
    assert sorted(column(page, "seed")) == ["0", "0", "1", "1"] and page.errors == []


def test_damage_is_told_on_the_page(sweep: Path, tab: Page, tmp_path: Path) -> None:
    folder = shutil.copytree(next(sweep.parent.parent.glob("gpt_*")), tmp_path / "run")
    assert markers(folder) == ["DONE"]
    (folder / ".checksums").unlink()
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([*rows[:3], "{dam\n", *rows[3:]]))
    assert main([str(folder)]) == 0
    page = show(tab, folder / "dashboard.html")
    assert "line 4 is damaged" in page.texts("#problems")[0] and page.errors == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_in_dark(page: Page, dark: bool) -> None:
    page.size(1400, 1000, dark)
    told = page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
    )
    ink, paper = (sum(colour[:3]) for colour in told)
    assert (ink - paper if dark else paper - ink) > 500


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], sweep: Path) -> None:
    assert main([str(tmp_path)]) == 2
    assert re.fullmatch(r"error: SWEEP=.*\n", capsys.readouterr().err)
    assert main([str(sweep), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert re.fullmatch(r"error: --out=.*\n", capsys.readouterr().err)
