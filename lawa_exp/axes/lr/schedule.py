"""Learning rates as pure functions of what has been seen.

Convention: `rate(schedule, scaling, batches, step)` is the rate of the update that completes `step` (1, 2, ...).
Warm-up is linear in `unit` and ends at the peak (power: at its own curve). All lengths are resolved to steps once;
between them progress is measured in `unit` (steps, samples or tokens), which matters only where the batch changes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice, Planned
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

    @property
    def word(self) -> str:
        """What folders and reports call it."""
        return type(self).__name__.lower()

    @property
    def folder_words(self) -> tuple[str, ...]:
        return (f"{self.word}{self.peak:g}",)

    def stable_part(self) -> Schedule | None:
        """The constant-rate schedule that it is up to `stable_steps`, where cool-downs of other lengths leave the same
        training; None of a schedule without such a part."""
        return None

    @property
    def stable_steps(self) -> int:
        """The last step before its decay; the horizon of a schedule that has no such step."""
        return self.horizon

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

    @property
    def marks(self) -> frozenset[int]:
        """Steps, of its own, at which a plan shows the rate."""
        return frozenset()

    @property
    def known_until(self) -> int:
        """The last step whose rate is known before the training."""
        return sys.maxsize

    def after_rates(self) -> str:
        """What follows the rates in a plan."""
        return ""

    def after_warmup(self, batches: Batches) -> str:
        """What follows the warm-up in a plan."""
        return ""

    def lines(self, planned: Planned) -> Iterator[str]:
        """The rate at some steps that this training does, and the warm-up."""
        from lawa_exp.axes.lr.rates import rate

        config, batches, steps, warmup = planned.config, planned.batches, planned.config.steps, self.warmup_steps
        shown = {1, warmup or 1, steps // 4 or 1, steps // 2 or 1, 3 * steps // 4 or 1, steps, planned.first + 1}
        shown |= self.marks | config.fault.marks
        last = min(steps, self.known_until)
        rates = [
            f"{rate(self, config.scaling, config.fault, batches, s):.3g} at step {s:,}"
            for s in sorted(shown)
            if planned.first < s <= last
        ]
        yield "rate        " + ", ".join(rates) + self.after_rates()
        yield (
            f"            warm-up to step {warmup:,} ({batches.samples(warmup):,} samples){self.after_warmup(batches)}"
            + (f"; planned for {self.horizon:,} steps" if self.uses_horizon and self.horizon != steps else "")
        )

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
