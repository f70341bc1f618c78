"""Evaluation: a fixed set, every sample once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from lawa_exp.axes.dataset.loading import eval_batches
from lawa_exp.axes.objective.task import IGNORE
from lawa_exp.config.shared import Evaluate
from lawa_exp.evaluation.numerics import Autocast
from lawa_exp.seams.dataset import Dataset
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError


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
    """Indices of the samples that are evaluated: `all`, or `samples` of them evenly spaced; int64, ascending."""
    count = size if isinstance(samples, str) else min(size, samples)
    return np.arange(count, dtype=np.int64) * size // count


@torch.no_grad()
def batch_sums(
    objective: nn.Module,
    data: Dataset,
    split: str,
    settings: Evaluate,
    ranks: Ranks,
    device: torch.device,
    autocast: Autocast,
) -> np.ndarray:
    """Summed loss in nats and number of targets of each batch of the fixed set of `split`: float64 [batches, 2].

    Where the targets are classes also how many of them were the most probable one: [batches, 3].

    Batches of `settings.batch_size` go round the ranks, which all make as many passes; the last batch is filled up with
    targets that do not count, so that every forward pass has one shape. Every module's mode is restored.
    """
    indices, batch_size = fixed_set(data.sizes[split], settings.samples), settings.batch_size
    with_correct = data.classes is not None
    columns = 3 if with_correct else 2
    sums = torch.zeros(-(-len(indices) // batch_size), columns, dtype=torch.float64, device=device)
    starts = range(0, len(sums), ranks.world)
    # A rank without a batch of its own repeats the last one: every rank takes part when sharded weights are gathered.
    batches = [min(start + ranks.rank, len(sums) - 1) for start in starts]
    samples = [indices[batch * batch_size : (batch + 1) * batch_size] for batch in batches]
    loaded = eval_batches(data, split, (np.resize(of_batch, batch_size) for of_batch in samples), device)
    with evaluating(objective), contextlib.closing(loaded):
        for start, batch, of_batch, (inputs, targets) in zip(starts, batches, samples, loaded, strict=True):
            targets[len(of_batch) :] = IGNORE
            count = (targets != IGNORE).sum().double()
            with autocast():
                if with_correct:
                    loss, correct = objective(inputs, targets, True)
                    own = torch.stack([loss.double(), count, correct.double()])
                else:
                    own = torch.stack([objective(inputs, targets).double(), count])
            if start + ranks.rank < len(sums):
                sums[batch] = own
    return ranks.sum(sums).cpu().numpy()


def fields_of(sums: np.ndarray, eval_samples: int, in_bits: bool = False) -> dict[str, float | int]:
    """What a row says of them: sums in the order of the batches, whatever the number of ranks, divided once.

    in_bits: with `loss_bits` as well.
    """
    loss, targets, *correct = np.add.accumulate(sums)[-1].tolist()
    if not targets:
        raise UserError(f"evaluate.samples: none of the {eval_samples:,} samples has a target; expected more of them")
    accuracy = {"accuracy": correct[0] / targets} if correct else {}
    bits = {"loss_bits": loss / targets / math.log(2)} if in_bits else {}
    return {"loss": loss / targets, **bits, **accuracy, "eval_samples": eval_samples}


def evaluate(
    objective: nn.Module,
    data: Dataset,
    split: str,
    settings: Evaluate,
    ranks: Ranks,
    device: torch.device,
    autocast: Autocast,
) -> dict[str, float | int]:
    """Mean loss in nats per target over the fixed set of `split`, and accuracy where they are classes."""
    sums = batch_sums(objective, data, split, settings, ranks, device, autocast)
    return fields_of(sums, len(fixed_set(data.sizes[split], settings.samples)), data.in_bits)
