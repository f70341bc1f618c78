"""A model from outside lawa_exp, with BatchNorm and dropout."""

import torch
from torch import nn


class SmallNet(nn.Module):
    """tokens [batch, context] -> logits [batch, context, 256]"""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.conv = nn.Conv1d(width, width, 3, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(self.embedding(tokens).transpose(1, 2), (2, 0))
        return self.head(self.dropout(torch.relu(self.norm(self.conv(x)))).transpose(1, 2))
