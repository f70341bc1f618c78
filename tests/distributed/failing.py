"""A model that fails on rank 1 alone, at its eighth forward pass in training."""

import os

import torch
from torch import nn


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 16)
        self.head = nn.Linear(16, 256)
        self.passes = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        if self.passes == 8 and os.environ["RANK"] == "1":
            raise ValueError("the eighth batch of rank 1")
        return self.head(self.embedding(tokens))
