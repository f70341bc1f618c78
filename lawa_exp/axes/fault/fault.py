"""Faults that are injected on purpose: a burst of bad batches or of rate, to see what averages do across it.

A fault strikes the updates that complete the steps at+1 .. at+length, and is a pure function of the step: it is the
same in a resumed run, and on other ranks. It is part of the trajectory id, even where a budget ends before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lawa_exp.axes.choice import Choice, Planned
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.seams.sampler import Sampler


class Fault(Choice):
    """The settings of a fault; each kind changes one of the two functions."""

    at: int | None = None  # the last step before it strikes; None: it never does
    length: int = 0  # steps

    @property
    def folder_words(self) -> tuple[str, ...]:
        from lawa_exp.axes.fault import FAULTS

        return () if self.absent else (f"bad_{FAULTS.kind_of(self)}",)

    @property
    def marks(self) -> frozenset[int]:
        """Steps at which a plan shows the rate."""
        return frozenset()

    def check_continues(self, before: Choice, step: int) -> None:
        if self.at is not None and self.at < step and self != before:
            raise UserError(
                f"fault.at={self.at}: the steps up to init.step={step} are the source's, which has another fault "
                f"({before}); choose fault.at={step} or later, none or the same"
            )

    def lines(self, planned: Planned) -> Iterator[str]:
        if self.at is not None:
            yield f"fault       {self.described}, in steps {self.at + 1:,} to {self.at + self.length:,}"

    def warnings(self, planned: Planned) -> Iterator[str]:
        steps = planned.config.steps
        if self.at is not None and (last := self.at + self.length) > steps:
            yield f"fault.at={self.at}: it lasts until step {last:,}, beyond the budget of {steps:,} steps"

    @property
    def described(self) -> str:
        """What it does, for a plan."""
        raise NotImplementedError

    def rate_factor(self, step: int) -> float:
        """What the schedule's rate of the update that completes `step` is multiplied by."""
        return 1.0

    def sampler(self, inner: Sampler) -> Sampler:
        """What decides the samples, in place of `inner`."""
        return inner
