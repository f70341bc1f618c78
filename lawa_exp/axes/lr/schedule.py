"""Learning rates as pure functions of what has been seen.

Convention: `rate(schedule, scaling, batches, step)` is the rate of the update that completes `step` (1, 2, ...).
Warm-up is linear in `unit` and ends at the peak (power: at its own curve). All lengths are resolved to steps once;
between them progress is measured in `unit` (steps, samples or tokens), which matters only where the batch changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice
from lawa_exp.config.rules import one_of
from lawa_exp.seams.batches import Batches
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.axes.configuration import Config

UNIT = one_of("steps", "samples", "tokens")


class Schedule(Choice):
    """The settings of a schedule. Subclasses give `value(batches, step)`, the rate after the warm-up."""

    uses_horizon: ClassVar[bool] = True  # whether `horizon` determines the rate
    peak: float
    warmup_steps: int
    horizon: int
    unit: str
    samples: int | str = 0  # training samples that a measurement takes, or all

    def value(self, batches: Batches, step: int) -> float:
        raise NotImplementedError

    def fits(self) -> None:
        """UserError where its lengths, resolved, do not fit into the horizon."""
        if self.uses_horizon and self.warmup_steps > self.horizon:
            raise UserError(
                f"lr.warmup_steps={self.warmup_steps}: expected at most the horizon, {self.horizon} steps "
                "(lr.horizon, else the budget)"
            )

    def idle(self, config: Config) -> set[str]:
        """Where the batch stays the same, steps, samples and tokens are in proportion."""
        return {name for name, idle in (("horizon", not self.uses_horizon), ("unit", config.batch.constant)) if idle}

    def measured_after(self, step: int) -> bool:
        """Whether the rate from the next update on is measured on the weights after `step`."""
        return False

    def takes_measurement(self, step: int) -> bool:
        """Whether the update that completes `step` has the rate that was measured last."""
        return False

    def progress(self, batches: Batches, step: int, first: int | None = None) -> float:
        """Share, 0 to 1, of the way from `first` (default: the warm-up's end) to the horizon."""
        start = batches.seen(self.unit, self.warmup_steps if first is None else first)
        end = batches.seen(self.unit, self.horizon)
        return min(1.0, max(0.0, (batches.seen(self.unit, step) - start) / max(1, end - start)))
