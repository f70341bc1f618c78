"""Wrong command lines: exit code 2 and one line, no traceback, nothing written, bounded in time and memory."""

from __future__ import annotations

import dataclasses
import random
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.counted import append_counts, chosen
from harness.forked import run
from harness.lines import (
    AVERAGE,
    BUDGETS,
    GOOD,
    NOWHERE,
    OTHERS,
    PLACES,
    READING,
    READOUT,
    SMALL,
    TRAIN,
    WORDS,
    place,
)

from lawa_exp.averaging import AVERAGERS
from lawa_exp.config.rules import key_of, rule_of
from lawa_exp.launch.conf import CONF, groups
from lawa_exp.runs.choices import SHARED, TABLES

ODD: dict[str, Any] = {  # values that hardly any setting takes, as they are typed
    **{"{a:1}": {"a": 1}, "[[1]]": [[1]], "[x]": ["x"], "nan": float("nan"), "inf": float("inf"), "true": True},
    **{"-7.5": -7.5, "-1": -1, "abc": "abc", "''": "", "null": None, "1e400": float("inf"), "0": 0},
}
Line = tuple[str, ...]  # the command, "" of a training, and its words


def lines() -> list[Line]:
    """All of them, always in the same order."""
    return list(dict.fromkeys([*of_tables(), *of_places(), *random.Random(2).sample(list(of_settings()), 80)]))


def of_tables() -> Iterator[Line]:
    for words in table(TRAIN):
        yield "", *training(words)
    for words in table(READOUT):
        more = ["--k=2", "--spacing=10"] if not any(w.startswith(("--k", "--spacing", "--avg")) for w in words) else []
        yield "readout", "run", *words, *more
    for command, text in {"average": AVERAGE, **OTHERS}.items():
        for words in table(text):
            yield command, *spelled(words)


def of_places() -> Iterator[Line]:
    """Paths that are no such thing, of every command."""
    for command, (more, out) in READING.items():
        yield command, *more.split()
        for nowhere in NOWHERE:
            yield command, nowhere, *more.split()
        for where in PLACES if out else []:
            yield command, GOOD.get(command, "run"), *more.split(), str(out), where
    for where in PLACES:
        yield "average", *spelled(["A", "B", "--out", where])
        yield "data", *spelled(["D", where])
        yield "export", "run", "--to", "huggingface", "--out", where


def of_settings() -> Iterator[Line]:
    """For each setting of each choice a value that its own rule refuses."""
    draw, seen = random.Random(1), set()
    for chosen_by, prefix, cls in choices():
        for field in dataclasses.fields(cls):
            if (cls, field.name) in seen:  # of another choice of the same class
                continue
            seen.add((cls, field.name))
            wrong = [text for text, value in ODD.items() if "rule" in field.metadata and refuses(field, value)]
            if wrong and key_of(field) != "args":
                yield "", *training([*chosen_by, f"{prefix}.{key_of(field)}={draw.choice(wrong)}"])


def choices() -> Iterator[tuple[list[str], str, Any]]:
    """Words that choose, the settings' prefix and their class."""
    for group, names in groups().items():
        for name in names if group in TABLES else []:
            content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text()) or {}
            if content.get("kind") in TABLES[group]:
                yield [f"{group}={name}"], group, TABLES[group][content["kind"]]
    yield from (([f"avg={name}"], f"averagers.{name}", AVERAGERS[name]) for name in AVERAGERS if name != "custom")
    yield from (([], name, cls) for name, cls in SHARED.items())


def refuses(field: dataclasses.Field[Any], value: object) -> bool:
    try:
        rule_of(field).read(value)
    except (ValueError, TypeError):
        return True
    return False


def table(text: str) -> Iterator[list[str]]:
    return (shlex.split(words) for line in text.strip().splitlines() for words in line.split(" | "))


def spelled(words: list[str]) -> list[str]:
    return [part for word in words for part in (WORDS[word].split() if word in WORDS else [word])]


def training(words: list[str]) -> list[str]:
    """A training of SMALL, into `fresh`, with these words in place of its own."""
    flags, keys = [w for w in words if w.startswith("-")], {w.partition("=")[0] for w in words}
    keys |= set(BUDGETS) if keys & set(BUDGETS) else set()
    own = [w for w in [*SMALL, "run_dir=fresh"] if w.partition("=")[0] not in keys]
    if "-m" in words:
        own = [w for w in own if w != "run_dir=fresh"]
    if any(w.startswith(("avg=", "averagers", "~averagers")) for w in words):
        own = [w for w in own if w.partition("=")[0] not in ("avg", "k", "spacing")]
    return [*flags, *own, *(w for w in words if w not in flags)]


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, but for locks; the caches that a compiler leaves are not what is read."""
    files = [p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()]
    kept = [p for p in files if p.name != ".lock" and "__pycache__" not in p.parts]
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in kept}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    base = folder / "base"
    assert run("lawa_exp", *SMALL, f"run_dir={base}", cwd=folder).code == 0
    (folder / "work").mkdir()
    place(folder / "work", base)
    return folder / "work"


def test_wrong_command_lines(workspace: Path, pytestconfig: pytest.Config) -> None:
    wrong: dict[str, str] = {}
    cases = chosen(lines(), pytestconfig)
    before = files_in(workspace)
    for command, *words in cases:
        module = f"lawa_exp.{command}".rstrip(".")
        ended = run(module, *words, cwd=workspace)
        after = files_in(workspace)
        how = ended.wrong or ("wrote" if {n: f for n, f in after.items() if n in before} != before else None)
        if how:
            wrong[f"{module} {shlex.join(words)}: {ended.err[-600:]}"] = how
        before = after
    assert not wrong, "\n".join(f"{how}: {case}" for case, how in wrong.items())
    append_counts(pytestconfig, "wrong command lines", {"refused in one line": len(cases)})
