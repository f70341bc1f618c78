"""BatchNorm: which samples share statistics in training, and what statistics weights are evaluated with.

`evaluate.bn`, for the live weights and for every average of them:
    recalibrate  those of the weights themselves, on training samples (Izmailov et al. 2018, section 3.2)
    average      the running statistics, averaged as the weights are; of the live weights those that training left
    latest       the running statistics of the latest observed weights
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing

import torch
from torch import Tensor, nn

from lawa_exp.averaging import Averager
from lawa_exp.averaging.tensors import statistics_in
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.dataset.loading import train_batches
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.evaluation.evaluate import Evaluation, evaluating
from lawa_exp.storage.rows import Row


def policy(config: Config, model: nn.Module) -> str | None:
    """What rows say of BatchNorm and its like: `evaluate.bn`, or None for a model that keeps no statistics."""
    return config.evaluate.bn if statistics_in(model) else None


def policy_field(bn: str | None) -> dict[str, str]:
    """How it stands in a row."""
    return {} if bn is None else {"bn": bn}


def running_field(bn: str | None, loss: float) -> dict[str, float]:
    """How the loss of the live weights with the statistics that training left stands in their row."""
    return {} if bn is None else {"loss_running_bn": loss}


def has_statistics_of(row: Row, bn: str | None) -> bool:
    """Whether a row of the live weights was made with the statistics of `bn`: recalibrated or running ones."""
    return bn is None or (row["bn"] == "recalibrate") == (bn == "recalibrate")


def with_statistics(averager: Averager, weights: Mapping[str, Tensor], bn: str | None) -> dict[str, Tensor]:
    """`weights`, which `averager` has just given with the latest statistics, with those that `bn` asks for."""
    if bn != "average":
        return dict(weights)
    averaged = averager.statistics()  # bema extrapolates: no variance becomes negative
    return {**weights, **{n: t.clamp_(min=0) if n.endswith("running_var") else t for n, t in averaged.items()}}


@torch.no_grad()
def recalibrate(model: nn.Module, e: Evaluation, config: Config) -> None:
    """Sets all statistics to the mean of those of single batches, as `torch.optim.swa_utils.update_bn` does.

    The batches, of evaluate.batch_size, are the first evaluate.bn_samples samples of the training's first epoch, as
    training sees them; all modules are in evaluation mode but those that observe. They go round the ranks and are
    summed in float64 in their order: the result is the same on any number of ranks. A last batch of one sample, which
    may have no variance, is left out.
    """
    modules, data, ranks, device = list(statistics_in(model).values()), e.data, e.ranks, e.device
    size, batch_size, bn_samples = data.sizes["train"], config.evaluate.batch_size, config.evaluate.bn_samples
    samples = size if isinstance(bn_samples, str) else min(size, bn_samples)
    if samples % batch_size == 1 and samples > 1:
        samples -= 1
    count = -(-samples // batch_size)
    statistics = [t for module in modules for t in module.statistics().values()]
    total = torch.zeros(sum(t.numel() for t in statistics), dtype=torch.float64, device=device)
    starts = range(0, count, ranks.world)
    # A rank without a batch of its own repeats the last one: every rank takes part when sharded weights are gathered.
    firsts = [min(start + ranks.rank, count - 1) * batch_size for start in starts]
    batches = (in_epochs(first, min(batch_size, samples - first), size, config.seed) for first in firsts)
    with (
        evaluating(model),
        ExitStack() as observing,
        closing(train_batches(data, config.seed, batches, device)) as loaded,
    ):
        for module in modules:
            observing.enter_context(module.observe())
        for start, (inputs, _) in zip(starts, loaded, strict=True):
            for module in modules:
                module.reset()
            with e.autocast():
                model(inputs)
            by_rank = total.new_zeros(ranks.world, len(total))
            if start + ranks.rank < count:
                by_rank[ranks.rank] = torch.cat([t.flatten() for t in statistics])
            for of_batch in ranks.sum(by_rank)[: count - start]:
                total += of_batch
    total /= count
    for tensor, values in zip(statistics, total.split([t.numel() for t in statistics]), strict=True):
        tensor.copy_(values.view_as(tensor))
