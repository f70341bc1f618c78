"""Which cases of a harness are tried, and where their counts go."""

from __future__ import annotations

import json
import random
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


def append_counts(config: pytest.Config, harness: str, counts: Mapping[str, int]) -> None:
    """Appends how its cases ended to the file of --harness-out."""
    if out := config.getoption("harness_out"):
        line = {"harness": harness, "whole": config.getoption("harness_whole"), "counts": dict(counts)}
        with Path(out).open("a") as file:
            file.write(json.dumps(line) + "\n")
