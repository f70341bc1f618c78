"""Which snapshots an average needs, and what to do where they were not saved."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from lawa_exp.averaging.settings import AveragerSettings
from lawa_exp.config.rules import setting_names


def missing_steps(settings: AveragerSettings, saved: Collection[int], step: int) -> list[int]:
    """The steps that the average after `step` needs and whose snapshots are not saved."""
    return [s for s in settings.needed(step) if s not in saved]


def problem_with(settings: AveragerSettings, saved: Collection[int], step: int) -> str | None:
    """Why the average after `step` cannot be had from the saved snapshots, and what to do; None where it can."""
    missing = missing_steps(settings, saved, step)
    if not missing:
        return None
    were = "was" if len(missing) == 1 else "were"
    return (
        f"it needs the weights of {len(settings.needed(step)):,} steps, of which {len(missing):,} {were} not saved "
        f"(the first: step {missing[0]:,}); train again with it attached: the training's command with rerun=true"
    )


def next_longer(settings: AveragerSettings, saved: Collection[int], step: int) -> tuple[str, int] | None:
    """The key and the value of the next longer period with which the saved snapshots give the average after `step`."""
    gap = math.gcd(*saved)
    if not gap:
        return None
    name, period = "spacing" if settings.windowed else "every", math.ceil(settings.period / gap) * gap
    if name not in setting_names(type(settings)):  # from outside: its builder's arguments are not known here
        return None
    longer = replace(settings, **{name: period})
    few = len(longer.needed(step)) < longer.observations
    return None if longer == settings or few or missing_steps(longer, saved, step) else (name, period)
