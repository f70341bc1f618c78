"""The gradient noise scale, from the gradients that accumulation has at hand (McCandlish et al. 2018, appendix A.1)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class MicroNorms:
    """Sums the squared norms of the gradients of single micro-batches, on this rank.

    Autograd gives each parameter the gradient of one backward pass just before adding it to `.grad`, and there a hook
    takes its norm. It is the increment itself, not a difference of rounded sums, and comes before DDP mixes the ranks;
    no copy is held and nothing changed. The cost is one read of the gradients, in the steps that it is on for.
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


def estimates(batch_squared: float, micro_squared: float, batch: int, micro: int) -> dict[str, float]:
    """Unbiased estimates of |G|^2 and tr(Sigma), of one step: the fields of its training row.

    batch_squared: squared norm of the whole batch's gradient (the mean over `batch` samples). micro_squared: mean
    squared norm of the gradients of its micro-batches (each the mean over `micro` samples, a proper part of the batch).

    grad_squared estimates |G|^2, G the gradient over all data; grad_variance estimates tr(Sigma), Sigma the covariance
    of one sample's gradient. Both are noisy, and the first may be negative: average each of them over steps, then the
    gradient noise scale is grad_variance / grad_squared, in samples (`lawa_exp.metrics.noise_scale`).

    Samples count as drawn independently. Within an epoch of N they are drawn without replacement: then grad_squared
    estimates |G|^2 - tr(Sigma) / N, which matters where the noise scale is not small against N. With BatchNorm or
    dropout a micro-batch's gradient is no mean over its samples alone: the estimates hold for micro-batches so large.

    Where samples have unequal numbers of targets (a masked language model) the batch's gradient is the mean over its
    targets: micro-batches count by theirs, and a sample stands for as many targets as the batch's samples have on
    average. The estimates are then unbiased for targets drawn independently; those of one sample are not quite that.
    """
    return {
        "grad_squared": (batch * batch_squared - micro * micro_squared) / (batch - micro),
        "grad_variance": (micro_squared - batch_squared) / (1 / micro - 1 / batch),
    }
