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

    base_batch: int = setting(integer(1), "the batch size for which the rate is given")
    saturation: int = setting(integer(1), "batch size beyond which the rate no longer grows")
    exponent: float = setting(number(above=0, high=1), "power of the batch size's ratio")
    warmup: str = setting(WARMUP, "what stays the same of a warm-up at another batch size: its steps or its samples")

    def factor(self, size: int, tokens_per_sample: int) -> float:
        return float((min(size, self.saturation) / self.base_batch) ** self.exponent)
