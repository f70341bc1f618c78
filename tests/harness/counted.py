"""Which cases of a harness are tried, and where their counts go."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def chosen(cases: Sequence[T], config: pytest.Config) -> list[T]:
    """All of them under --harness-whole, else a tenth, the same each time."""
    if config.getoption("harness_whole"):
        return list(cases)
    return random.Random(0).sample(list(cases), len(cases) // 10)


def told(config: pytest.Config, harness: str, cases: int, wrong: Mapping[str, str]) -> None:
    """Appends the counts to the file of --harness-out; fails where a case went wrong. wrong: how, by the case."""
    if out := config.getoption("harness_out"):
        with Path(out).open("a") as file:
            file.write(json.dumps({"harness": harness, "cases": cases, "wrong": Counter(wrong.values())}) + "\n")
    assert not wrong, f"{len(wrong)} of {cases}:\n" + "\n".join(f"{how}: {case}" for case, how in wrong.items())
