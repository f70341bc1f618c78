"""The gradient noise scale, from the gradients that accumulation has at hand (McCandlish et al. 2018, appendix A.1)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class MicroNorms:
    """Sums the squared norms of the gradients of single micro-batches, on this rank.

    Autograd gives each parameter the gradient of one backward pass just before adding it to `.grad`, and there a hook
    takes its norm. It is the increment itself, not a difference of rounded sums, and comes before DDP mixes the ranks;
    no copy is kept and nothing changed. The cost is one read of the gradients, in the steps that it is on for.
    """

    def __init__(self, parameters: Iterable[Tensor], device: torch.device) -> None:
        self.on, self.weight = False, 1.0
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        for parameter in parameters:
            parameter.register_hook(self.add)

    def add(self, gradient: Tensor) -> None:
        if self.on:
            self.total += torch.linalg.vector_norm(gradient).double().square() * self.weight

    def start(self, on: bool) -> None:
        """Before the first backward pass of a step. on: whether its gradients count."""
        self.on = on
        self.total = torch.zeros_like(self.total)

    def micro_batch(self, targets: int, mean: float) -> None:
        """Before each backward pass. targets: of its micro-batch; mean: of the micro-batches of the whole batch.

        The part that a micro-batch has of the batch's gradient is its own gradient times targets / (mean * count).
        """
        self.weight = mean / max(targets, 1)
