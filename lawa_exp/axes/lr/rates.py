"""The learning rate of each update: the schedule, the scaling, a fault, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.fault.fault import Fault
from lawa_exp.axes.lr.schedule import Schedule
from lawa_exp.axes.scaling.scaling import Scaling
from lawa_exp.seams.batches import Batches
from lawa_exp.seams.callback import Callback

if TYPE_CHECKING:
    from torch import Tensor

    from lawa_exp.seams.callback import Saved


def rate(
    schedule: Schedule, scaling: Scaling, fault: Fault, batches: Batches, step: int, measured: float | None = None
) -> float:
    """The learning rate of the update that completes `step`.

    measured: the last measurement, where there was one. Only a schedule that measures takes it, from its first on: a
    branch may have it from the run that it goes on from.
    """
    factor = scaling.factor(batches.size(step), batches.tokens_per_sample)
    if measured is not None and schedule.takes_measurement(step):
        value = factor * measured
    else:
        value = factor * schedule.value(batches, max(step, schedule.warmup_steps))
        if step <= schedule.warmup_steps:
            value = value * (batches.seen(schedule.unit, step) / batches.seen(schedule.unit, schedule.warmup_steps))
    return fault.rate_factor(step) * value


class Rates(Callback):
    """measure: the rate that the weights of this moment ask for; None where there is none."""

    def __init__(
        self,
        schedule: Schedule,
        scaling: Scaling,
        fault: Fault,
        batches: Batches,
        measure: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.schedule, self.scaling, self.fault, self.batches = schedule, scaling, fault, batches
        self.measure = measure
        self.measured: float | None = None

    def of(self, step: int) -> float:
        """The rate of the update that completes `step`, measured before it where that is due."""
        if self.schedule.measured_after(step - 1):
            self.measured = self.measure() or self.measured
        return rate(self.schedule, self.scaling, self.fault, self.batches, step, self.measured)

    def state(self) -> Saved:
        return {}, {"measured": self.measured}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self.measured = scalars["measured"]
