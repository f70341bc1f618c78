"""With the batch, up to a cap."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.axes.scaling.scaling import WARMUP, Scaling
from lawa_exp.config.rules import integer, number, setting


@dataclass(frozen=True)
class Capped(Scaling):
    """(min(B, saturation) / base_batch)^exponent (Granziol et al. 2022: exponent 1 for SGD, 1/2 for Adam).

    saturation: the batch beyond which the noise no longer dominates the curvature, B_sat.
    """

    base_batch: int = setting(integer(1))
    saturation: int = setting(integer(1))
    exponent: float = setting(number(above=0, high=1))
    warmup: str = setting(WARMUP)

    def factor(self, size: int, tokens_per_sample: int) -> float:
        return float((min(size, self.saturation) / self.base_batch) ** self.exponent)
