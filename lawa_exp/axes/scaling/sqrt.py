"""With the square root of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lawa_exp.axes.scaling.scaling import WARMUP, Scaling
from lawa_exp.config.rules import integer, setting


@dataclass(frozen=True)
class SquareRoot(Scaling):
    """sqrt(B / base_batch); for Adam with a small eps (Granziol et al. 2022), LAMB (You et al. 2020)."""

    base_batch: int = setting(integer(1), "the batch size for which the rate is given")
    warmup: str = setting(WARMUP, "what stays the same of a warm-up at another batch size: its steps or its samples")

    def factor(self, size: int, tokens_per_sample: int) -> float:
        return math.sqrt(size / self.base_batch)
