"""Models that fail on rank 1 alone, or whose files are late on rank 0."""

import errno
import os
import threading
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
            raise ValueError("the eighth batch of rank 1, in /data/gloo/NCCL.jpg")  # not another rank's end
        return self.head(self.embedding(tokens))


def without_room() -> nn.Module:
    """Whose second snapshot rank 1 cannot write."""
    from lawa_exp.storage import store

    original = store.write_pieces

    def write_pieces(path: Path, pieces: list) -> list:
        if "step_00000010" in str(path) and os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, pieces)

    store.write_pieces = write_pieces
    return nn.Sequential(nn.Embedding(256, 16), nn.Linear(16, 256))


def with_late_files() -> nn.Module:
    """What is written beside training is written no sooner than it is waited for."""
    from lawa_exp.storage import store
    from lawa_exp.system.background import Background

    commit, drain, waited_for = store.commit, Background.drain, threading.Event()

    def late_commit(target: Path, files: dict) -> dict:
        if threading.current_thread() is not threading.main_thread():
            waited_for.wait()
        return commit(target, files)

    def late_drain(background: Background) -> None:
        waited_for.set()
        drain(background)
        waited_for.clear()

    store.commit, Background.drain = late_commit, late_drain
    return nn.Sequential(nn.Embedding(256, 16), nn.Linear(16, 256))
