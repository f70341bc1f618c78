"""What a job is worth to a sweeper: the val loss at its end, of one of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lawa_exp.config.rules import near
from lawa_exp.storage.manifest import Entry
from lawa_exp.storage.rows import number_in, read_rows, with_newer
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import Failed, UserError

LIVE = "live"


def weights_of(averages: Sequence[str], choice: str | None = None) -> str:
    """The weights whose loss is a job's value: `live`, or the id of an average.

    averages: the ids of those that the job attaches. choice: `sweep.value`, an id, the kind that one of them has, or
    live; None: the one average, where there is one alone, else live. UserError: the job has no such weights.
    """
    if choice is None:
        return averages[0] if len(averages) == 1 else LIVE
    if choice == LIVE or choice in averages:
        return choice
    of_kind = [id for id in averages if id.split("-")[0] == choice]
    if len(of_kind) == 1:
        return of_kind[0]
    among = f"{choice} is {len(of_kind)} averages; choose one: {', '.join(of_kind)}" if of_kind else None
    raise UserError(f"sweep.value={choice}: {among or near(choice, [LIVE, *averages])}")


def value_of(run: RunDir, weights: str, step: int) -> float:
    """The val loss of the weights after the step, also of an average that was read out later; inf of a run that had
    diverged by then.

    Failed: it was not evaluated there.
    """
    marker, facts = run.marker() or ("", {"step": 0})
    if marker == "DIVERGED" and facts["step"] <= step:
        return math.inf
    rows = read_rows(run.metrics, trained=False)
    rows = with_newer(rows, read_rows(run.readouts / weights / "metrics.jsonl", trained=False))
    found = [
        row
        for row in rows
        if (row["step"], row["split"], row["weights"]) == (step, "val", weights) and "view" not in row and "loss" in row
    ]
    if not found:
        raise Failed(f"{run.path}: no val loss of {weights} after step {step:,}")
    value = number_in(found[-1], "loss")
    return value if math.isfinite(value) else math.inf


def compared(entries: Sequence[Entry], choice: str | None = None) -> tuple[list[str], list[float]]:
    """Lines on the values of a sweep's entries and on the least, and the values. choice: see `weights_of`."""
    shared = set.intersection(*(set(entry["overrides"]) for entry in entries)) if len(entries) > 1 else set()
    lines: list[tuple[float, str]] = []
    missing: list[str] = []
    for entry in entries:
        weights = weights_of(entry["averages"], choice)
        named = f"{weights:16} {' '.join(o for o in entry['overrides'] if o not in shared)}"
        try:
            lines.append((value_of(RunDir(entry["run_dir"]), weights, entry["steps"]), named))
        except (Failed, UserError, OSError) as error:
            missing.append(f"warning: {error}")
    said = ["val loss at the end:", *(f"{value:10.4f}  {named}" for value, named in lines)]
    if any(math.isfinite(value) for value, _ in lines):
        value, named = min(lines)
        said.append(f"least: {value:.4f}  {named}")
    return said + missing, [value for value, _ in lines]
