"""Evaluation: a fixed set, every sample once, and the live weights back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lawa_exp.config import Evaluate
from lawa_exp.distributed import Ranks
from lawa_exp.models.objective import IGNORE


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers by name, no copies; of tied weights the first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def averaged_names(model: nn.Module) -> frozenset[str]:
    """What averagers average: the parameters. Buffers are carried as they were last."""
    return frozenset(name for name, _ in model.named_parameters())


class Swap:
    """Puts other weights in place of the live ones, and the live bytes back; meanwhile nothing may be saved."""

    def __init__(self, live: Mapping[str, Tensor]) -> None:
        self.live = live
        self.away = False

    @contextmanager
    def applied(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        assert not self.away, "weights are already swapped"
        assert weights.keys() == self.live.keys(), "the weights do not fit the model"
        with torch.no_grad():
            kept = {name: tensor.clone() for name, tensor in self.live.items()}
            self.away = True
            try:
                for name, tensor in self.live.items():
                    tensor.copy_(weights[name])
                yield
            finally:
                for name, tensor in self.live.items():
                    tensor.copy_(kept[name])
                self.away = False


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every sub-module's own mode back."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def fixed_set(size: int, samples: int | str) -> np.ndarray:
    """Indices of the samples that are evaluated: all, or `samples` of them evenly spaced; int64, ascending."""
    count = size if samples == "all" else min(size, int(samples))
    return np.arange(count, dtype=np.int64) * size // count


@torch.no_grad()
def evaluate(
    objective: nn.Module,
    data: Any,
    split: str,
    settings: Evaluate,
    ranks: Ranks,
    device: torch.device,
    autocast: Any,
) -> dict[str, float | int]:
    """Mean loss in nats per target over the fixed set of `split`: {"loss", "eval_samples"}.

    Batches of `settings.batch_size` go round the ranks; the last is filled up with targets that do not count, so that
    every forward pass has one shape. Every module's mode is restored.
    """
    indices, batch_size = fixed_set(data.sizes[split], settings.samples), settings.batch_size
    total = torch.zeros(2, dtype=torch.float64, device=device)  # summed loss, targets
    with evaluating(objective):
        for first in range(ranks.rank * batch_size, len(indices), ranks.world * batch_size):
            chosen = indices[first : first + batch_size]
            inputs, targets = (torch.from_numpy(a) for a in data.eval_batch(split, np.resize(chosen, batch_size)))
            targets[len(chosen) :] = IGNORE
            with autocast():
                loss = objective(inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True))
            total += torch.stack([loss.double(), (targets != IGNORE).sum().double().to(device)])
    loss_sum, count = ranks.sum(total).tolist()
    return {"loss": loss_sum / count, "eval_samples": len(indices)}
