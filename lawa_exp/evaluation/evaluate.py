"""Evaluation: a fixed set, every sample once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lawa_exp.axes.dataset.loading import eval_batches
from lawa_exp.config.shared import Evaluate
from lawa_exp.evaluation.numerics import Autocast
from lawa_exp.seams.dataset import Dataset
from lawa_exp.seams.task import IGNORE, Task
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


@dataclass(frozen=True)
class Evaluation:
    """What evaluates the weights that are in a model.

    scorer: inputs, targets -> float64 [columns], of which the first are the sums of the data set's task. columns: None:
    those alone.
    """

    scorer: nn.Module
    data: Dataset
    settings: Evaluate
    ranks: Ranks
    device: torch.device
    autocast: Autocast
    columns: int | None = None


@torch.no_grad()
def batch_sums(e: Evaluation, split: str) -> np.ndarray:
    """What the task sums up of each batch of the fixed set of `split`: float64 [batches, columns].

    Batches of `evaluate.batch_size` go round the ranks, which all make as many passes; the last batch is filled up with
    targets that do not count, so that every forward pass has one shape. Every module's mode is restored.
    """
    indices, batch_size = fixed_set(e.data.sizes[split], e.settings.samples), e.settings.batch_size
    count, ranks = -(-len(indices) // batch_size), e.ranks
    sums = torch.zeros(count, e.columns or e.data.task.columns, dtype=torch.float64, device=e.device)
    starts = range(0, count, ranks.world)
    # A rank without a batch of its own repeats the last one: every rank takes part when sharded weights are gathered.
    batches = [min(start + ranks.rank, count - 1) for start in starts]
    samples = [indices[batch * batch_size : (batch + 1) * batch_size] for batch in batches]
    loaded = eval_batches(e.data, split, (np.resize(of_batch, batch_size) for of_batch in samples), e.device)
    with evaluating(e.scorer), contextlib.closing(loaded):
        for start, batch, of_batch, (inputs, targets) in zip(starts, batches, samples, loaded, strict=True):
            targets[len(of_batch) :] = IGNORE
            with e.autocast():
                own = e.scorer(inputs, targets)
            if start + ranks.rank < count:
                sums[batch] = own
    return ranks.sum(sums).cpu().numpy()


def fields_of(task: Task, sums: np.ndarray, eval_samples: int) -> dict[str, float | int]:
    """What a row says of them: sums in the order of the batches, whatever the number of ranks, divided once."""
    added = np.add.accumulate(sums)[-1]
    if not added[1]:
        raise UserError(f"evaluate.samples: none of the {eval_samples:,} samples has a target; expected more of them")
    fields = task.fields(added)
    if fields.keys() != task.metrics.keys():
        raise UserError(
            f"the task's fields are {', '.join(fields)}, its metrics {', '.join(task.metrics)}: not the same"
        )
    return {**fields, "eval_samples": eval_samples}


def evaluate(e: Evaluation, split: str) -> dict[str, float | int]:
    """The task's metrics over the fixed set of `split`: the mean loss per target, and others."""
    return fields_of(e.data.task, batch_sums(e, split), len(fixed_set(e.data.sizes[split], e.settings.samples)))
