"""EMA: starts as the first observed weights, then e <- e + (1 - decay) * (theta - e) at each observed step.

Closed form after observations theta_0 .. theta_n, with d the decay:
d^n * theta_0 + sum over i = 1..n of (1 - d) * d^(n-i) * theta_i.
Kept in float32, given in the weights' own dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lawa_exp.averaging.accumulator import Accumulator


class Ema(Accumulator):
    dtype = torch.float32

    def accumulate(self, theta: list[Tensor]) -> None:
        running = list(self.running.values())
        torch._foreach_lerp_(running, [t.float() for t in theta], 1 - self.settings.decay)

    def value(self, running: Tensor) -> Tensor:
        return running
