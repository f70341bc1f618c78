"""The GPU benchmark: it works where there is no GPU, and calls nothing measured that was not."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str, name: str = "gpu_speed") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, f"benchmarks/{name}.py", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)


def test_smoke(tmp_path: Path) -> None:
    ran = benchmark("--smoke", "--models", "gpt2_medium,resnet50", "--out", str(tmp_path / "page.md"))
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Smoke test") and "no figure here is a result" in page
    measured = [line for line in page.splitlines() if line.startswith(("| gpt2_medium | 2 | 128 in", "| resnet50, "))]
    assert len(measured) == 3 and all(line.endswith("not known |") for line in measured)
    assert page.count("| - | not measured |") == 2
    assert "1 worker(s)" in page and str(tmp_path) not in page


@pytest.mark.slow  # torch is imported five times
def test_a_session_goes_through_its_stages(tmp_path: Path) -> None:
    ran = benchmark("--smoke", "--stages", "tests,averaging", "--out", str(tmp_path), name="gpu_session")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    page = (tmp_path / "session.md").read_text()
    assert "smoke test: no figure is a result" in page and page.count("| done |") == 2
    assert "LAWA, k=5" in (tmp_path / "averaging.md").read_text()
    late = benchmark(*("--smoke", "--minutes", "0.05", "--out", str(tmp_path / "late")), name="gpu_session")
    assert late.returncode == 0 and (tmp_path / "late" / "session.md").read_text().count("no time was left") == 6


def test_a_stage_of_a_session_leaves_no_process_and_no_earlier_page_is_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    session = importlib.import_module("gpu_session")
    (tmp_path / "one.md").write_text("of an earlier session")
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    row = session.stage_row(
        session.Stage("one", ("-c", code), 1.0, ()), 60.0, argparse.Namespace(out=tmp_path, smoke=False)
    )
    assert row[:2] == ("one", "done") and row[3] == "[one.log](one.log)"
    command = Path("/proc") / (tmp_path / "one.log").read_text().strip() / "cmdline"
    while command.exists() and command.read_bytes():  # empty: it has ended, and nobody has asked how
        time.sleep(0.01)


@pytest.mark.slow  # four multiruns
def test_the_ladder_trains_its_trunk_and_branches(tmp_path: Path) -> None:
    ran = benchmark("--smoke", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), name="gpu_ladder")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = [line.split(" | ") for line in (tmp_path / "out" / "ladder.md").read_text().splitlines()]
    cells = {line[0]: line for line in lines if line[0] in ("| 80", "| 160")}
    assert all(len([cell for cell in line if re.fullmatch(r"\d\.\d{4}( \|)?", cell)]) == 4 for line in cells.values())
    runs = [json.loads(line) for line in (tmp_path / "out" / "ladder.jsonl").read_text().splitlines()]
    assert sorted(run["key"]["schedule"] for run in runs) == ["constant", "wsd", "wsd"] and len(cells) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_not_measured() -> None:
    ran = benchmark("--models", "gpt2_small,resnet50")
    assert ran.returncode == 2 and len(ran.stderr.strip().splitlines()) == 1
    assert "not measured: tokens per second of gpt2_small, loading / no loading of resnet50" in ran.stderr


def test_peaks_have_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_peaks import PEAKS, peak_of

    assert all("data sheet" in source for *_, source in PEAKS)
    found = {name: peak_of(name) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB")}
    assert [f and f[0] / 1e12 for f in found.values()] == [989.4, 756, 312]
    assert peak_of("NVIDIA GeForce GTX 1080") is None
