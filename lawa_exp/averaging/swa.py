"""SWA: the plain mean of all observed weights, as a float64 sum in step order, divided once when asked."""

from __future__ import annotations

import torch
from torch import Tensor

from lawa_exp.averaging.accumulator import Accumulator


class Swa(Accumulator):
    dtype = torch.float64

    def accumulate(self, theta: list[Tensor]) -> None:
        torch._foreach_add_(list(self.running.values()), theta)

    def value(self, running: Tensor) -> Tensor:
        return running / self.count
