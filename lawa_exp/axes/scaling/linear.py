"""In proportion to the batch."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.axes.scaling.scaling import WARMUP, Scaling
from lawa_exp.config.rules import integer, setting


@dataclass(frozen=True)
class Linear(Scaling):
    """B / base_batch (Goyal et al. 2017); for SGD, where the noise dominates (Granziol et al. 2022)."""

    base_batch: int = setting(integer(1), "the batch size for which the rate is given")
    warmup: str = setting(WARMUP, "what stays the same of a warm-up at another batch size: its steps or its samples")

    def factor(self, size: int, tokens_per_sample: int) -> float:
        return size / self.base_batch
