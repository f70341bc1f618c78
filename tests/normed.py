"""A small causal model with BatchNorm over samples and positions, and its training."""

import torch
from helpers import tiny
from torch import nn
from torch.nn import functional as F


class Normed(nn.Module):
    """tokens [batch, context] -> logits [batch, context, 256]; no bias that BatchNorm takes away again."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.conv = nn.Conv1d(width, width, 3, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.hidden = nn.Linear(width, width, bias=False)
        self.flat_norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens).transpose(1, 2)
        x = torch.relu(self.norm(self.conv(F.pad(x, (2, 0)))))
        x = self.hidden(x.transpose(1, 2))
        return self.head(torch.relu(self.flat_norm(x.flatten(0, 1))).view(x.shape))


# 60 steps, as helpers.TINY. Recalibration: 100 samples in batches of 32, the last of 4.
NORMED = [
    "model=custom",
    "model.builder=normed:Normed",
    "model.context=32",
    *(o for o in tiny("batch.size=8") if not o.startswith("model.")),
    "evaluate.bn_samples=100",
    "logger.every=1",
]
