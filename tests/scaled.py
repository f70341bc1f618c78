"""A small causal model whose hidden layers are scaled by statistics of their own, and its training."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from helpers import tiny
from torch import Tensor, nn

from lawa_exp.seams.layers import buffers_kept


class Scale(nn.Module):
    """x [..., width] / the mean size of each channel up to now, this pass included; in training and in evaluation."""

    def __init__(self, width: int, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.observing = False
        self.register_buffer("size", torch.ones(width))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.observing:
            now = x.detach().flatten(0, -2).abs().mean(0)
            self.passes += 1
            share = 1 / self.passes if self.observing else 1 - self.decay
            self.size += share * (now - self.size)
        return x / (self.size + 0.1)

    def statistics(self) -> dict[str, Tensor]:
        return {"size": self.size}

    def reset(self) -> None:
        self.size.fill_(1.0)
        self.passes.zero_()

    @contextmanager
    def observe(self) -> Iterator[None]:
        self.observing = True
        try:
            yield
        finally:
            self.observing = False

    def frozen(self) -> AbstractContextManager[None]:
        return buffers_kept(self)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.scale = nn.Linear(width, width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(torch.tanh(self.hidden(x)))


class Scaled(nn.Module):
    """tokens [batch, context] -> logits [batch, context, 256].

    `constant` is never changed. `counted` is, through `.data`, where no version counter moves; `late` is from the 8th
    pass on; `cache` is replaced in each pass.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 256)
        self.register_buffer("constant", torch.ones(1000))
        self.register_buffer("counted", torch.zeros(()))
        self.register_buffer("late", torch.zeros(3))
        self.register_buffer("cache", torch.zeros(4), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * self.constant[0]
        if self.training:
            self.counted.data += tokens.double().mean().float()
            if self.blocks[0].scale.passes > 6:
                self.late += x.detach().mean()
            self.cache = torch.zeros(tokens.shape[0])
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def scaled(*overrides: str) -> list[str]:
    """20 steps of it. Recalibration: 100 samples in batches of 32, the last of 4."""
    every = ("steps=20", "batch.size=8", "evaluate.every=10", "save.every=10", "averagers.swa.start=5")
    keys = {o.split("=")[0] for o in overrides}
    usual = [o for o in tiny(*every) if not o.startswith("model.") and o.split("=")[0] not in keys]
    built = ["model=custom", "model.builder=scaled:Scaled", "model.context=32"]
    return [*built, *usual, "evaluate.bn_samples=100", "logger.every=1", *overrides]
