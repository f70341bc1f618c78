"""A plateau and a decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lawa_exp.axes.lr.schedule import Schedule
from lawa_exp.seams.batches import Batches
from lawa_exp.system.errors import UserError

SHAPES = {  # of a decay: share of it that is over -> what is left between the peak (1) and the final rate (0)
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
}


class Decaying(Schedule):
    """A plateau, then a decay over the last `decay_steps` before the horizon."""

    decay_steps: int
    shape: str
    final_ratio: float

    @property
    def stable_steps(self) -> int:
        """The last step before the decay."""
        return self.horizon - self.decay_steps

    @property
    def marks(self) -> frozenset[int]:
        return frozenset({self.stable_steps})

    def after_warmup(self, batches: Batches) -> str:
        return f", decay after step {self.stable_steps:,} ({batches.samples(self.stable_steps):,} samples)"

    def plateau(self, batches: Batches, step: int) -> float:
        raise NotImplementedError

    def value(self, batches: Batches, step: int) -> float:
        stable = self.stable_steps
        if step <= stable:
            return self.plateau(batches, step)
        over = self.progress(batches, step, stable)
        top = self.plateau(batches, stable)
        if self.shape == "exponential":
            return top * float(self.final_ratio**over)
        share: float = SHAPES[self.shape](over)
        return top * (self.final_ratio + (1 - self.final_ratio) * share)

    def fits(self) -> None:
        super().fits()
        if self.stable_steps < self.warmup_steps:
            raise UserError(
                f"lr.decay_steps={self.decay_steps}: with the warm-up of {self.warmup_steps} steps it is longer "
                f"than the horizon, {self.horizon} steps"
            )

    @classmethod
    def together(cls, values: Mapping[str, Any]) -> None:
        if values["shape"] == "exponential" and values["final_ratio"] == 0:
            raise UserError("final_ratio=0: an exponential decay needs one above 0")

    def __post_init__(self) -> None:
        self.together(vars(self))
