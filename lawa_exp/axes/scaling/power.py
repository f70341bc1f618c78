"""In proportion to the batch, counted in sequences of the Power Scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.axes.scaling.scaling import SEQUENCE, WARMUP, Scaling
from lawa_exp.config.rules import integer, setting


@dataclass(frozen=True)
class PowerScaling(Scaling):
    """Linear in the batch counted in sequences of 4,096 tokens, as in the Power Scheduler (Shen et al. 2024)."""

    base_batch: int = setting(integer(1), "the batch size for which the rate is given")
    warmup: str = setting(WARMUP, "what stays the same of a warm-up at another batch size: its steps or its samples")

    def base_samples(self, tokens_per_sample: int) -> float:
        return self.base_batch * SEQUENCE / tokens_per_sample

    def factor(self, size: int, tokens_per_sample: int) -> float:
        return size / self.base_samples(tokens_per_sample)
