"""Models that fail on rank 1 alone."""

import errno
import os
from pathlib import Path

import torch
from torch import nn


class Failing(nn.Module):
    """At its eighth forward pass in training."""

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


def without_room() -> nn.Module:
    """Whose second snapshot rank 1 cannot write."""
    from lawa_exp.checkpoint import store

    original = store.write_pieces

    def write_pieces(path: Path, pieces: list) -> list:
        if "step_00000010" in str(path) and os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, pieces)

    store.write_pieces = write_pieces
    return nn.Sequential(nn.Embedding(256, 16), nn.Linear(16, 256))
