"""Why an average cannot be had from what was saved, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lawa_exp.averaging import AveragerSettings
from lawa_exp.averaging.needs import missing_steps, next_longer

SHOWN = 5  # steps that a note names


def too_few(settings: AveragerSettings, last: int) -> str | None:
    """Why an average is not defined by the last step, if so."""
    observed = len(settings.needed(last))
    if observed >= settings.observations:
        return None
    return f"it needs {settings.observations} snapshots, and there are {observed} for it up to step {last:,}"


def defined(settings: AveragerSettings, step: int) -> bool:
    return len(settings.needed(step)) >= settings.observations


def missing(settings: AveragerSettings, paths: Mapping[int, Path], last: int) -> str | None:
    """Why the checkpoints do not give an average, if so."""
    lacking = [s for s in settings.needed(last) if s not in paths]
    return (
        f"no checkpoint of step {lacking[0]:,} ({len(lacking):,} of {len(settings.needed(last)):,} missing)"
        if lacking
        else None
    )


def gaps(settings: AveragerSettings, paths: Mapping[int, Path], live: Sequence[int]) -> str:
    """Where an average is not there for want of checkpoints in between; empty where it is wherever it can be."""
    lacking = {s: absent for s in live if defined(settings, s) and (absent := missing_steps(settings, paths, s))}
    if not lacking:
        return ""
    steps, without = (few(sorted(some)) for some in (lacking, set().union(*lacking.values())))
    return f"{settings.id} is not there at step {steps}: no checkpoint of step {without}."


def few(steps: list[int]) -> str:
    """`10, 20, 30 and 4 more`."""
    more = f" and {len(steps) - SHOWN:,} more" if len(steps) > SHOWN else ""
    return ", ".join(f"{s:,}" for s in steps[:SHOWN]) + more


def instead(settings: AveragerSettings, saved: Mapping[int, Path], last: int) -> str:
    """`, or ask for --spacing 20`: the next longer one of the same average that can be had; empty without."""
    longer = next_longer(settings, saved, last)
    return f", or ask for --{longer[0]} {longer[1]}, which can be had" if longer else ""


def period_note(every: str | None, replayed: Sequence[AveragerSettings], period: int) -> list[str]:
    """That averages which a training updates at every step are not that here. every: the flag."""
    kinds = dict.fromkeys(s.kind for s in replayed if not s.windowed and s.period == period > 1)
    if every or not kinds:
        return []
    return [
        f"{', '.join(kinds)}: observing the weights every {period:,} steps, where snapshots are; one attached to a "
        "training can observe every step, and is another average. --every sets it."
    ]
