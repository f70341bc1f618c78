"""A rate that is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.choice import Planned
from lawa_exp.axes.lr.schedule import UNIT, Schedule
from lawa_exp.config.rules import defaulted, either, integer, number, one_of, setting, steps
from lawa_exp.seams.batches import Batches
from lawa_exp.system.errors import UserError


@dataclass(frozen=True)
class OnTheFly(Schedule):
    """The peak until `start`; from then on g'g / g'Hg, measured every `every` steps, constant in between.

    g and H: gradient and Hessian of the loss over `samples` of the training set (evenly spaced, always the same),
    without dropout. As in the code that Granziol et al. (2022) published (rmt_damping_dl, lr_sgd.py): once an epoch,
    from the third on, over the whole set (`samples: all`), momentum left as it is. Not published, and ours: where g'Hg
    is not positive the last rate stays; a subset as the default; no measurement before the warm-up's end; `scaling`
    multiplies what is measured. The momentum learned by Lanczos quadrature, of which the paper speaks, is not in that
    code, and not here.
    """

    uses_horizon: ClassVar[bool] = False
    peak: float = setting(number(above=0), "the learning rate until the first measurement")
    warmup_steps: int = setting(steps(), "steps over which the rate rises linearly from zero to the peak")
    horizon: int = setting(defaulted(steps(1)), "not used by this schedule")
    unit: str = setting(UNIT, "what the warm-up and the schedule's progress are measured in")
    every: int = setting(steps(1), "steps between two measurements")
    start: int = setting(steps(), "the first step that may measure")
    samples: int | str = setting(
        either(integer(1), one_of("all")), "training samples over which gradient and curvature are taken"
    )

    def check(self, planned: Planned) -> None:
        if not planned.config.objective.absent:
            raise UserError("lr=on_the_fly: measures the task's loss; expected objective=task")
        if planned.sharing == "fsdp":
            raise UserError(
                "lr=on_the_fly: not with trainer=fsdp, which does not differentiate twice; choose trainer=ddp"
            )

    def warnings(self, planned: Planned) -> Iterator[str]:
        if self.first >= planned.config.steps:
            yield f"lr=on_the_fly: the first measurement, after step {self.first:,}, is beyond the budget"
        if not planned.config.optimizer.follows_gradient:
            yield "lr=on_the_fly measures a rate for gradient descent: meant for optimizer=sgd"

    @property
    def known_until(self) -> int:
        return self.first

    def after_rates(self) -> str:
        return f"; measured every {self.every:,} steps from step {self.first:,} on"

    def value(self, batches: Batches, step: int) -> float:
        return self.peak

    @property
    def first(self) -> int:
        """The step after which it is first measured."""
        return -(-max(self.start, self.warmup_steps) // self.every) * self.every

    def takes_measurement(self, step: int) -> bool:
        return step > self.first

    def measured_after(self, step: int) -> bool:
        return step >= self.first and step % self.every == 0
