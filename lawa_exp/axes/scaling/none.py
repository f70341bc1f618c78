"""No scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.scaling.scaling import Scaling


@dataclass(frozen=True)
class NoScaling(Scaling):
    """The rate is the schedule's at any batch size."""

    absent: ClassVar[bool] = True
    warmup = "steps"

    def factor(self, size: int, tokens_per_sample: int) -> float:
        return 1.0
