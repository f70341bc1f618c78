"""The learning rate of one update."""

from __future__ import annotations

from lawa_exp.axes.batch.batches import Batches
from lawa_exp.axes.lr.on_the_fly import OnTheFly
from lawa_exp.axes.lr.schedule import Schedule
from lawa_exp.axes.scaling.scaling import Scaling


def rate(schedule: Schedule, scaling: Scaling, batches: Batches, step: int, measured: float | None = None) -> float:
    """The learning rate of the update that completes `step`.

    measured: the last measurement, where there was one. Only a schedule that measures takes it, from its first on: a
    branch may have it from the run that it goes on from.
    """
    factor = scaling.factor(batches.size(step), batches.tokens_per_sample)
    if measured is not None and isinstance(schedule, OnTheFly) and step > schedule.first:
        return factor * measured
    value = schedule.value(batches, max(step, schedule.warmup_steps))
    if step > schedule.warmup_steps:
        return factor * value
    over = batches.seen(schedule.unit, step) / batches.seen(schedule.unit, schedule.warmup_steps)
    return factor * value * over
