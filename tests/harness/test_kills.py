"""Every command that writes, killed at a change of a file or folder, and started again: the bytes of a twin that ran
undisturbed.

The place of a kill is drawn with a seed: the n-th change that the process makes under its folder, of as many as it
makes. Everyday a seeded tenth, with --harness-whole all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.counted import append_counts
from helpers import Strike, contents, run, tiny

STEPS = tiny("steps=20", "k=2", "spacing=5", "evaluate.every=10", "save.every=5", "avg=lawa", "save.keep=[10]")
TRAIN = [w for w in STEPS if not w.startswith(("averagers.ema", "averagers.swa"))]
SIGNALS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM")
SEED = 23

Made = Callable[[Path], dict[str, str]]


def files(*names: str) -> Made:
    """The hashes of what lies there; what says who wrote it, and when, is left out."""

    def made(root: Path) -> dict[str, str]:
        found = [p for name in names for p in [root / name, *sorted((root / name).rglob("[!.]*"))] if p.is_file()]
        kept = [p for p in found if not p.name.endswith(".lock") and p.name != "progress.json"]
        return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}

    return made


def trained(*runs: str) -> Made:
    """Of the states the last: one that was stopped keeps that of the step at which it was."""

    def made(root: Path) -> dict[str, str]:
        found = {}
        for name in runs:
            last = max((root / name / "resume").glob("step_*"), default=Path("none")).name
            of = {file: content for file, content in contents(root / name).items() if not file.startswith("resume/")}
            of |= {file: content for file, content in contents(root / name).items() if f"resume/{last}/" in file}
            found |= {f"{name}/{file}": content for file, content in of.items()}
        return found

    return made


def trained_by(folder: str) -> Made:
    def made(root: Path) -> dict[str, str]:
        return trained(*sorted(str(p.parent.relative_to(root)) for p in root.glob(f"{folder}/*/DONE")))(root)

    return made


def page(root: Path) -> dict[str, str]:
    return {"page": re.sub(r'"written":"[^"]*"', "", (root / "page.html").read_text())}


@dataclass(frozen=True)
class Target:
    """A command that writes. changes: how many changes of files it makes, at least; kills: in the whole harness.

    needs: what lies there before. last: what is written last, as a proof that nothing is lacking.
    """

    module: str
    arguments: tuple[str, ...]
    made: Made
    changes: int
    kills: int
    needs: tuple[str, ...] = ("run",)


TARGETS = {
    "train": Target("lawa_exp", (*TRAIN, "run_dir=new"), trained("new"), 150, 20, ()),
    "multirun": Target(
        "lawa_exp",
        ("-m", *[w for w in TRAIN if "steps=" not in w], "steps=10", "seed=0,1", "runs_root=out", "sweep=s"),
        trained_by("out"),
        150,
        10,
        (),
    ),
    "rerun": Target("lawa_exp", (*TRAIN, "run_dir=run", "rerun=true"), trained("run"), 150, 10),
    "read out of the run": Target(
        "lawa_exp", (*TRAIN, "run_dir=run", "avg=[lawa,wma]", "averagers.wma.k=2"), trained("run"), 20, 6
    ),
    "readout": Target(
        "lawa_exp.readout", ("run", "--k", "2,3", "--spacing", "5,10", "--name", "n"), files("run/readouts/n"), 12, 10
    ),
    "suggest": Target("lawa_exp.suggest", ("run",), files("run/readouts/suggest"), 12, 8),
    "average": Target(
        "lawa_exp.average",
        ("--trajectory", "run", "--k", "2", "--spacing", "5", "--out", "out"),
        files("out"),
        20,
        14,
    ),
    "export": Target("lawa_exp.export", ("run", "--to", "huggingface", "--out", "out"), files("out"), 12, 10),
    "dashboard": Target("lawa_exp.dashboard", ("run", "--out", "page.html"), page, 2, 6),
    "summary": Target("lawa_exp.summary", ("sweeps/s", "--out", "sum"), files("sum"), 6, 8, ("run", "sweeps")),
    "curvature": Target(
        "lawa_exp.curvature",
        ("run", "--samples", "16", "--batches", "1", "--iterations", "4"),
        files("run/curvature"),
        8,
        6,
    ),
    "data": Target(
        "lawa_exp.data",
        (
            *("prepare", "openwebtext", "--source", "docs.jsonl", "--out", "out", "--workers", "1"),
            *("--val-fraction", "0.05"),
        ),
        files("out"),
        12,
        8,
        ("docs.jsonl",),
    ),
}
KILLS = [name for name, target in TARGETS.items() for _ in range(target.kills)]
EVERYDAY = ("average", "export", "dashboard", "summary", "readout", "train")  # of which a tenth of all is drawn


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sources(tmp_path_factory.mktemp("kills"))


def make_sources(root: Path) -> Path:
    """A finished run, a sweep of it, and a text: what the commands need."""
    assert run(*TRAIN, f"run_dir={root / 'run'}").returncode == 0
    entry = {"overrides": ["seed=0"], "run_dir": "run", "steps": 20, "averages": ["lawa-k2-s5"]}
    (root / "sweeps" / "s").mkdir(parents=True)
    (root / "sweeps" / "s" / "manifest.json").write_text(json.dumps({"command": "x", "entries": [entry]}))
    words = random.Random(SEED)
    lines = [{"text": " ".join(f"w{words.randrange(500)}" for _ in range(30))} for _ in range(200)]
    (root / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def twins() -> dict[str, dict[str, str]]:
    return {}


def fresh(sources: Path, work: Path, target: Target) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in target.needs:
        there = sources / name
        (shutil.copytree if there.is_dir() else shutil.copy)(there, work / name)
    return work


def struck(target: Target, work: Path, place: int, signal: str) -> tuple[int, str]:
    """The exit code, and what it said."""
    strike = Strike("files", of=str(work), n=place, signal=signal)
    done = run(*target.arguments, module=target.module, strike=strike, cwd=work)
    return done.returncode, done.stdout + done.stderr


def left_behind(work: Path) -> list[str]:
    return [str(p.relative_to(work)) for p in work.rglob(".partial-*")]


@pytest.mark.parametrize("name", TARGETS)
def test_killed_and_started_again(
    name: str,
    sources: Path,
    twins: dict[str, dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    whole, target = request.config.getoption("--harness-whole"), TARGETS[name]
    everyday = random.Random(SEED).sample([k for k in KILLS if k in EVERYDAY], len(KILLS) // 10)
    kills = target.kills if whole else everyday.count(name)
    if not kills:
        return
    if name == "data" and not os.environ.get("LAWA_TOKENIZER"):
        pytest.skip("GPT-2's tokenizer is not here (LAWA_TOKENIZER)")
    work = tmp_path_factory.getbasetemp() / "killed"
    never = 10**9
    assert struck(target, fresh(sources, work, target), never, "SIGKILL")[0] == 0
    twin = target.made(work)
    assert twin, "the twin made nothing"
    counts: Counter[str] = Counter()
    drawn = random.Random(f"{SEED}{name}")
    for _ in range(kills):
        signal, place, code = drawn.choice(SIGNALS), drawn.randint(1, target.changes), 0
        while code == 0 and place:  # fewer changes than were drawn: nearer to its beginning
            code, _ = struck(target, fresh(sources, work, target), place, signal)
            if code == 0:
                place //= 2
        counts[signal] += 1
        again, said = struck(target, work, never, "SIGKILL")
        if again == 2 and name == "export":  # the kill came after its rename: it is there already
            counts["was whole already"] += 1
        else:
            assert again == 0, f"{name}, {signal} at change {place}: the same command ends with {again}: {said[-600:]}"
        assert target.made(work) == twin, f"{name}, {signal} at change {place}: other bytes than the twin's"
        assert not left_behind(work), f"{name}, {signal} at change {place}: {left_behind(work)}"
    append_counts(
        request.config, f"kills: {name}", {**counts, "the twin's bytes": sum(counts[s] for s in set(SIGNALS))}
    )
