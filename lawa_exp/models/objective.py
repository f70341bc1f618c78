"""What a model is trained on: logits to a summed loss, one module so that compiling and DDP see the whole."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = -100  # a target that does not count


class Objective(nn.Module):
    """inputs, targets [batch, ...] -> cross-entropy in nats, summed over the targets that count (a scalar)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        logits = self.model(inputs)
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum")
