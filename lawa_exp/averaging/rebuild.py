"""Averagers of a training that goes on, rebuilt from its snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from lawa_exp.averaging import Averager
from lawa_exp.averaging.needs import problem_with
from lawa_exp.storage.commit import Damaged, verify
from lawa_exp.storage.store import Store


def rebuild(
    averager: Averager, folders: Mapping[int, Path], step: int, device: torch.device, store: Store
) -> tuple[list[int], str | None]:
    """Brings a new averager to where it would be after `step`, from the snapshots; returns their steps, or why not."""
    settings = averager.settings
    problem = problem_with(settings, folders, step)
    if problem and not settings.windowed:  # a window fills up as training goes on
        return [], problem
    needed = [s for s in settings.needed(step) if s in folders]
    damage = None
    try:
        for s in needed:
            verify(folders[s], store.ranks.rank, store.ranks.world)
    except Damaged as error:
        damage = str(error)
    if damage := next(filter(None, store.ranks.all_of(damage)), None):
        return [], f"{damage}; train again with it attached: the training's command with rerun=true"
    for s in needed:
        averager.update(s, {n: t.to(device) for n, t in store.read(folders[s]).items()})
    return needed, None


def how_rebuilt(taken_in: list[int], needed: int, step: int) -> str:
    """What an averager that is attached after `step` begins with: the steps of its snapshots, of those needed."""
    if not taken_in:
        why = "the snapshots that it needs were not saved" if needed else "it takes in none before"
        return f"starts empty after step {step:,}: {why}"
    of = f"{needed} snapshot{'s' * (needed > 1)}"
    if len(taken_in) < needed:
        of = f"{len(taken_in)} of {of}, as the others were not saved"
    return f"was rebuilt from {of}, up to that of step {taken_in[-1]:,}"
