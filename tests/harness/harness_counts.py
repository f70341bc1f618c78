"""What a harness counted, as a line of --harness-out FILE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest


def append_counts(request: pytest.FixtureRequest, harness: str, counts: Mapping[str, int]) -> None:
    if out := request.config.getoption("--harness-out"):
        whole = request.config.getoption("--harness-whole")
        with Path(out).open("a") as file:
            file.write(json.dumps({"harness": harness, "whole": whole, "counts": dict(counts)}) + "\n")
