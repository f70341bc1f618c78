"""What a `.wandb` file holds, turned back into the rows that it was made of, and compared with the run's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from helpers import rows

from lawa_exp.axes.logger.wandb.offline import Offline

Row = dict[str, Any]


def files(folder: Path) -> list[Path]:
    """The `.wandb` files of a run directory, in order of their start."""
    return sorted(folder.glob("wandb/*run-*/run-*.wandb"))


def rows_in(file: Offline) -> tuple[list[Row], list[Row]]:
    """The rows of metrics.jsonl and of timing.jsonl, made from the history and the configuration alone."""
    metrics: list[Row] = []
    timing: list[Row] = []
    averages: dict[str, Row] = file.config.get("averages", {})
    for sent in file.history:
        assert sent["_step"] == sent["step"]
        tables: dict[tuple[str, str], Row] = {}
        common: dict[str, Row] = {}
        times: Row = {}
        for key, value in sent.items():
            split, _, rest = key.partition("/")
            weights, _, field = rest.rpartition("/")
            if split == "train":
                tables.setdefault((split, "live"), {})[rest] = value
            elif split == "timing":
                times[rest] = value
            elif split == "val" and not weights:
                common.setdefault(split, {})[field] = value
            elif split == "val":
                tables.setdefault((split, weights), {})[field] = value
            else:
                assert split in ("step", "_step", "_timestamp", "_runtime", "_wandb", "best", "final"), key
        for (split, weights), fields in tables.items():
            row = {"step": sent["step"], "split": split, "weights": weights, **averages.get(weights, {}), **fields}
            row |= common.get(split, {})
            bad = sorted(k for k, v in row.items() if isinstance(v, float) and math.isnan(v))
            metrics.append({k: None if k in bad else v for k, v in row.items()} | ({"nonfinite": bad} if bad else {}))
        timing += [{"step": sent["step"], **times}] if times else []
    return metrics, timing


def assert_has_rows(file: Offline, folder: Path) -> None:
    """Every row of the run is in the file, once and as it is, and nothing else; of timing.jsonl the first of a step."""
    metrics, timing = rows_in(file)
    assert [r["_step"] for r in file.history] == sorted({r["_step"] for r in file.history})
    assert ordered(metrics) == ordered(rows(folder))
    first: dict[int, Row] = {}
    for row in rows(folder, "timing.jsonl"):
        first.setdefault(row["step"], row)
    assert timing == list(first.values())


def ordered(found: list[Row]) -> list[Row]:
    """In an order of their own, so that only the rows themselves are compared."""
    found = [r | {"nonfinite": sorted(r["nonfinite"])} if "nonfinite" in r else r for r in found]
    return sorted(found, key=lambda r: (r["step"], r["split"], r["weights"]))
