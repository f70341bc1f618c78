"""What a model is trained on: logits to a summed loss, one module so that compiling and DDP see the whole."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = -100  # a target that does not count


class Objective(nn.Module):
    """inputs, targets -> cross-entropy in nats, summed over the targets that count (a scalar).

    targets: classes or tokens, integers of the logits' shape without the last dimension; or probabilities, of their
    whole shape. with_correct: also the number of targets that are the most probable class. A model that computes its
    loss (`ModelSettings.computes_loss`) is called with both, and gives the sum itself: it need not form all logits.
    """

    def __init__(self, model: nn.Module, computes_loss: bool = False) -> None:
        super().__init__()
        self.model, self.computes_loss = model, computes_loss

    def forward(self, inputs: Tensor, targets: Tensor, with_correct: bool = False) -> Any:
        if self.computes_loss:
            return self.model(inputs, targets)
        logits = self.model(inputs)
        if targets.is_floating_point():
            return F.cross_entropy(logits, targets, reduction="sum")
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        return (loss, (logits.argmax(-1) == targets).sum()) if with_correct else loss
