"""The rate of one update, and what a schedule must be."""

from __future__ import annotations

from typing import Any

from lawa_exp.axes.batch.batches import Batches
from lawa_exp.axes.lr.decaying import Decaying
from lawa_exp.axes.lr.on_the_fly import OnTheFly
from lawa_exp.axes.lr.step import Steps
from lawa_exp.system.errors import UserError


def rate(schedule: Any, scaling: Any, batches: Batches, step: int, measured: float | None = None) -> float:
    """The learning rate of the update that completes `step`.

    measured: the last measurement, where there was one. Only a schedule that measures takes it, from its first on: a
    branch may have it from the run that it goes on from.
    """
    factor: float = scaling.factor(batches.size(step), batches.tokens_per_sample)
    if measured is not None and isinstance(schedule, OnTheFly) and step > schedule.first:
        return factor * measured
    value: float = schedule.value(batches, max(step, schedule.warmup_steps))
    if step > schedule.warmup_steps:
        return factor * value
    over = batches.seen(schedule.unit, step) / batches.seen(schedule.unit, schedule.warmup_steps)
    return factor * value * over


def check(schedule: Any) -> None:
    """UserError where warm-up and decay do not fit into the horizon, or milestones do not ascend."""
    if schedule.uses_horizon and schedule.warmup_steps > schedule.horizon:
        raise UserError(
            f"lr.warmup_steps={schedule.warmup_steps}: expected at most the horizon, {schedule.horizon} steps "
            "(lr.horizon, else the budget)"
        )
    if isinstance(schedule, Decaying) and schedule.stable_steps < schedule.warmup_steps:
        raise UserError(
            f"lr.decay_steps={schedule.decay_steps}: with the warm-up of {schedule.warmup_steps} steps it is longer "
            f"than the horizon, {schedule.horizon} steps"
        )
    if isinstance(schedule, Steps) and list(schedule.at) != sorted(set(schedule.at)):
        raise UserError(f"lr.at={list(schedule.at)}: expected ascending steps")
