"""The Power Scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lawa_exp.axes.choice import Planned
from lawa_exp.axes.lr.decaying import SHAPES, Decaying
from lawa_exp.axes.scaling.scaling import SEQUENCE
from lawa_exp.config.rules import defaulted, number, one_of, setting, steps
from lawa_exp.seams.batches import Batches


@dataclass(frozen=True)
class Power(Decaying):
    """min(peak, B * a * n^b) for n tokens seen and a batch of B sequences of 4,096 tokens, then a decay.

    Power Scheduler (Shen et al. 2024, equations 5 and 6): a = 4, b = -0.51, peak 0.02. Its decay goes exponentially to
    0, here to `final_ratio`.
    """

    peak: float = setting(number(above=0), "the highest learning rate, whatever the formula gives")
    warmup_steps: int = setting(steps(), "steps over which the rate rises linearly from zero to the peak")
    horizon: int = setting(defaulted(steps(1)), "the last step that the schedule is planned for; null: the budget")
    unit: str = setting(one_of("tokens"), "always tokens")
    a: float = setting(number(above=0), "factor of the rate, times the batch in sequences of 4,096 tokens")
    b: float = setting(number(high=0), "power of the number of tokens seen")
    decay_steps: int = setting(steps(at_end=True), "length of the final decay, in the last steps before the horizon")
    shape: str = setting(one_of(*SHAPES, "exponential"), "the curve of the final decay")
    final_ratio: float = setting(number(low=0, high=1), "the last rate, as a share of the rate before the decay")

    def warnings(self, planned: Planned) -> Iterator[str]:
        from lawa_exp.axes.scaling import SCALINGS

        if not planned.config.scaling.absent:
            name = SCALINGS.kind_of(planned.config.scaling)
            yield f"lr=power is proportional to the batch already: scaling={name} multiplies its rate once more"

    def plateau(self, batches: Batches, step: int) -> float:
        step = max(1, step)
        sequences = batches.size(step) * batches.tokens_per_sample / SEQUENCE
        return min(self.peak, sequences * self.a * float(batches.tokens(step) ** self.b))
