"""With the square root of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lawa_exp.axes.scaling.scaling import WARMUP, Scaling
from lawa_exp.config.rules import integer, setting


@dataclass(frozen=True)
class SquareRoot(Scaling):
    """sqrt(B / base_batch); for Adam with a small eps (Granziol et al. 2022), LAMB (You et al. 2020)."""

    base_batch: int = setting(integer(1))
    warmup: str = setting(WARMUP)

    def factor(self, size: int, tokens_per_sample: int) -> float:
        return math.sqrt(size / self.base_batch)
