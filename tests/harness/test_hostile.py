"""Hostile files, read by every command that reads their kind: nothing runs, nothing is read or written elsewhere, and
time and memory stay bounded."""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.counted import append_counts, chosen
from harness.forked import Ended, run
from harness.hostile import (
    CANARY,
    DISTRIBUTED,
    FOLDERS,
    PICKLES,
    SAFETENSORS,
    TENSOR,
    Make,
    safetensors,
    tensor_pickle,
    zipped,
)
from harness.hostile_runs import CONFIGURATIONS, DATA, LINKS
from harness.lines import SMALL, SWEEP

START = ["", *SMALL, "steps=1", "run_dir=r", "init.optimizer=reset"]  # begins from weights; the last budget counts
EXPORT = ["--to", "huggingface", "--out", "e"]
OF_A_RUN = [  # each a command and its words
    *(["status", "run"], ["dashboard", "run", "--out", "d.html"], ["summary", "sweep", "--out", "s"]),
    *(["readout", "run", "--k", "2", "--spacing", "10", "--name", "x"], ["suggest", "run", "--json"]),
    ["export", "run", *EXPORT],
    ["average", "--trajectory", "run", "--k", "2", "--out", "o"],
    ["curvature", "run", "--samples", "4", "--batches", "1", "--iterations", "2"],
    *(["push", "run", "--offline"], ["", *SMALL, "steps=40", "run_dir=run"], [*START, "init.from=run"]),
]
HARMLESS = {"records outside", "a memo of 2^28", "a memo of 2^31", "a list in a list 100,000 times"}  # to `average`
SECRET = b"secret"


def files() -> Iterator[tuple[str, Make, list[list[str]], bool]]:
    """What it is called, how it is made, what reads it, and whether that must be refused."""
    for name, make in PICKLES.items():
        reading = [
            ["average", "a.pt", "evil.pt", "--out", "o"],
            ["export", "evil.pt", "--to", "huggingface", "--out", "e"],
        ]
        yield f"pickle: {name}", make, reading, name not in HARMLESS
    for name, make in SAFETENSORS.items():
        reading = [
            ["average", "a.safetensors", "evil.safetensors", "--out", "o"],
            [*START, "init.from=evil.safetensors"],
        ]
        yield f"safetensors: {name}", make, reading, True
    for name, make in FOLDERS.items():
        yield f"folder: {name}", make, [["average", "hf", "--out", "o"], [*START, "init.from=hf"]], True
    for name, make in DISTRIBUTED.items():
        yield f"distributed: {name}", make, [["average", "hf", "--out", "o"]], True
    for name, make in {**CONFIGURATIONS, **LINKS}.items():
        yield f"run: {name}", make, OF_A_RUN, False
    for name, (make, words) in DATA.items():
        yield f"data: {name}", make, [words], True


def problem(ended: Ended, folder: Path, must_be_refused: bool) -> str | None:
    """What went wrong; None: it was refused in one line, or did no harm."""
    if (folder.parent / CANARY).exists():
        return "ran"
    if (how := ended.wrong) in ("hang", "traceback", "memory") or ended.code < 0:
        return how
    if "\x1b" in ended.out + ended.err:
        return "escapes"
    if (folder / "elsewhere").is_dir() and list((folder / "elsewhere").iterdir()):
        return "wrote elsewhere"
    outside = [folder / "elsewhere.txt", folder / "secret.txt"]
    written = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p not in outside]
    if any(path.exists() for path in outside) and any(SECRET in p.read_bytes() for p in written):
        return "took what is elsewhere"
    return how if must_be_refused else None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    assert run("lawa_exp", *SMALL, f"run_dir={folder / 'run'}", cwd=folder).code == 0
    return folder / "run"


def test_hostile_files(base: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    wrong: dict[str, str] = {}
    cases = chosen(list(files()), pytestconfig)
    counts: Counter[str] = Counter()
    for name, make, reading, must_be_refused in cases:
        folder = tmp_path / "work"
        for command, *words in reading:
            shutil.rmtree(folder, ignore_errors=True)
            placed(folder, base if "run: " in name else None)
            make(folder)
            ended = run(f"lawa_exp.{command}".rstrip("."), *words, cwd=folder)
            counts["nothing of it ran" if ended.code == 0 else "refused by name"] += 1
            if how := problem(ended, folder, must_be_refused):
                wrong[f"{name}: {command} {shlex.join(words)}: {ended.err[-600:]}"] = how
            (tmp_path / CANARY).unlink(missing_ok=True)
    assert not wrong, "\n".join(f"{how}: {case}" for case, how in wrong.items())
    append_counts(pytestconfig, "hostile files", counts)


def placed(folder: Path, base: Path | None) -> None:
    """What stands beside the hostile file."""
    folder.mkdir()
    zipped(folder / "a.pt", tensor_pickle())
    safetensors(folder / "a.safetensors", {"w": TENSOR})
    if base:
        shutil.copytree(base, folder / "run")
        (folder / "sweep").mkdir()
        (folder / "sweep/manifest.json").write_text(SWEEP.replace("RUN", str(folder / "run")))
