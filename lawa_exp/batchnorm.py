"""BatchNorm: which samples share statistics in training, and what statistics weights are evaluated with.

`evaluate.bn`, for the live weights and for every average of them:
    recalibrate  those of the weights themselves, on training samples (Izmailov et al. 2018, section 3.2)
    average      the running statistics, averaged as the weights are; of the live weights those that training left
    latest       the running statistics of the latest observed weights
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lawa_exp.averaging.swap import norms_in
from lawa_exp.config import Config, UserError
from lawa_exp.distributed import Ranks
from lawa_exp.evaluate import evaluating
from lawa_exp.loading import train_batches


def policy(config: Config, model: nn.Module) -> str | None:
    """What rows say of BatchNorm: `evaluate.bn`, or None for a model without running statistics."""
    return config.evaluate.bn if norms_in(model) else None


def policy_field(bn: str | None) -> dict[str, str]:
    """How it stands in a row."""
    return {} if bn is None else {"bn": bn}


def running_field(bn: str | None, loss: float) -> dict[str, float]:
    """How the loss of the live weights with the statistics that training left stands in their row."""
    return {} if bn is None else {"loss_running_bn": loss}


def has_statistics_of(row: Mapping[str, Any], bn: str | None) -> bool:
    """Whether a row of the live weights was made with the statistics of `bn`: recalibrated or running ones."""
    return bn is None or (row["bn"] == "recalibrate") == (bn == "recalibrate")


def with_statistics(averager: Any, weights: Mapping[str, Tensor], bn: str | None) -> dict[str, Tensor]:
    """`weights`, which `averager` has just given with the latest statistics, with those that `bn` asks for."""
    if bn != "average":
        return dict(weights)
    averaged = averager.statistics()  # bema extrapolates: no variance becomes negative
    return {**weights, **{n: t.clamp_(min=0) if n.endswith("running_var") else t for n, t in averaged.items()}}


@torch.no_grad()
def recalibrate(model: nn.Module, data: Any, config: Config, ranks: Ranks, device: torch.device, autocast: Any) -> None:
    """Sets the running statistics to the mean of those of single batches, as `torch.optim.swa_utils.update_bn` does.

    The batches, of evaluate.batch_size, are the first evaluate.bn_samples samples of the training's first epoch, as
    training sees them; every module but BatchNorm is in evaluation mode. They go round the ranks and are summed in
    float64 in their order: the result is the same on any number of ranks. A last batch of one sample, which may have no
    variance, is left out.
    """
    norms = list(norms_in(model).values())
    size, batch_size, asked = data.sizes["train"], config.evaluate.batch_size, config.evaluate.bn_samples
    samples = size if asked == "all" else min(size, int(asked))
    if samples % batch_size == 1 and samples > 1:
        samples -= 1
    count = -(-samples // batch_size)
    statistics = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
    total = torch.zeros(sum(t.numel() for t in statistics), dtype=torch.float64, device=device)
    momenta = [norm.momentum for norm in norms]
    starts = range(0, count, ranks.world)
    firsts = [min(start + ranks.rank, count - 1) * batch_size for start in starts]  # who has none repeats the last:
    parts = ((config.seed, first, min(batch_size, samples - first)) for first in firsts)  # all gather sharded weights
    with evaluating(model), closing(train_batches(data, parts, device)) as loaded:
        try:
            for norm in norms:
                norm.train()
                norm.momentum = None  # a cumulative average, for modules that are called more than once
            for start, (inputs, _) in zip(starts, loaded, strict=True):
                for norm in norms:
                    norm.reset_running_stats()
                with autocast():
                    model(inputs)
                found = total.new_zeros(ranks.world, len(total))
                if start + ranks.rank < count:
                    found[ranks.rank] = torch.cat([t.flatten() for t in statistics])
                for of_batch in ranks.sum(found)[: count - start]:
                    total += of_batch
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    total /= count
    for tensor, values in zip(statistics, total.split([t.numel() for t in statistics]), strict=True):
        tensor.copy_(values.view_as(tensor))


class GroupedNorm(_BatchNorm):
    """A BatchNorm over groups of samples in training (Ghost Batch Normalization, Hoffer et al. 2017).

    groups: into how many equal parts the first dimension of what comes in is cut; 0: as torch does. share [groups]: how
    much each one's statistics count in the running ones after the step, summed up in `pending` [2, channels].
    """

    groups = 0
    share: Tensor
    pending: Tensor

    def forward(self, input: Tensor) -> Tensor:
        groups = self.groups
        if not groups:
            return super().forward(input)
        self._check_input_dim(input)
        channels = input.shape[1]
        # Each group's channels beside those of the others: torch's own kernel does the rest.
        beside = input.unflatten(0, (groups, -1)).transpose(0, 1)
        folded = beside.flatten(1, 2)
        found = self.pending.new_zeros(2, groups * channels)
        weight, bias = (None if p is None else p.repeat(groups) for p in (self.weight, self.bias))
        normalised = F.batch_norm(folded, found[0], found[1], weight, bias, True, 1.0, self.eps)
        with torch.no_grad():
            self.pending += (self.share[:, None] * found.view(2, groups, channels)).sum(1)
        return normalised.view(beside.shape).transpose(0, 1).reshape(input.shape)


class GroupedNorm1d(GroupedNorm, nn.BatchNorm1d):
    pass


class GroupedNorm2d(GroupedNorm, nn.BatchNorm2d):
    pass


class GroupedNorm3d(GroupedNorm, nn.BatchNorm3d):
    pass


GROUPED: dict[type, type[GroupedNorm]] = {
    nn.BatchNorm1d: GroupedNorm1d,
    nn.BatchNorm2d: GroupedNorm2d,
    nn.BatchNorm3d: GroupedNorm3d,
}


def group_norms(model: nn.Module, size: int) -> None:
    """Makes BatchNorm modules `GroupedNorm`s, in place; names stay. UserError where there are none, or unknown ones."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        raise UserError(f"batch.norm_group={size}: expected null, the model has no BatchNorm")
    for norm in norms:
        if type(norm) not in GROUPED:
            known = ", ".join(cls.__name__ for cls in GROUPED)
            raise UserError(f"batch.norm_group={size}: the model has a {type(norm).__name__}, expected {known} alone")
        norm.__class__ = GROUPED[type(norm)]


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Meanwhile passes of `model` change copies of its running statistics, which are dropped."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    held = [(norm, dict(norm._buffers), getattr(norm, "pending", None)) for norm in norms]
    for norm, buffers, pending in held:
        norm._buffers.update({name: None if t is None else t.clone() for name, t in buffers.items()})
        if pending is not None:
            norm.pending = pending.clone()  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm, buffers, pending in held:
            norm._buffers.update(buffers)
            if pending is not None:
                norm.pending = pending


class TrainingStatistics:
    """The buffers of a model in training, BatchNorm's above all: the same on every rank after each step.

    Without batch.norm_group each rank's BatchNorm sees its micro-batches, and rank 0's buffers go to the others (as
    DistributedDataParallel does, but at the end of a step and not before the next: what observes sees one model).
    With it, groups count in the running statistics in the order of their samples in the batch, each as one batch of
    torch's: r <- (1 - m) r + m s, one after the other, whatever ranks and micro-batches they were in.
    """

    def __init__(self, model: nn.Module, size: int | None, ranks: Ranks) -> None:
        self.size, self.ranks = size, ranks
        self.buffers = list(model.buffers())
        self.norms = [m for m in model.modules() if isinstance(m, GroupedNorm)]
        for norm in self.norms:
            like = next(t for t in (norm.running_mean, *norm.parameters(), *self.buffers) if t is not None)
            norm.pending = torch.zeros(2, norm.num_features, device=like.device)
        self.total = 0  # groups in the step's batch

    def before_pass(self, first: int, samples: int, batch: int) -> None:
        """A forward pass over `samples` samples is next, from number `first` of the `batch` samples of this step."""
        if self.size is None:
            return
        self.total = batch // self.size
        start, count = first // self.size, samples // self.size
        shares: dict[float | None, Tensor] = {}
        for norm in self.norms:
            if norm.momentum not in shares:
                old, m = self._old(norm), norm.momentum
                after = [self.total - 1 - j for j in range(start, start + count)]  # groups after each one
                share = [(1 - old) / self.total if m is None else m * (1 - m) ** left for left in after]
                shares[m] = torch.tensor(share, device=norm.pending.device)
            norm.groups, norm.share = count, shares[norm.momentum]

    @torch.no_grad()
    def after_step(self) -> None:
        """All forward passes of the step are done."""
        if self.norms:
            parts = [norm.pending.flatten() for norm in self.norms]
            summed = self.ranks.sum(torch.cat(parts)).split([p.numel() for p in parts])
            for norm, found in zip(self.norms, summed, strict=True):
                old = self._old(norm)
                for running, new in zip((norm.running_mean, norm.running_var), found.chunk(2), strict=True):
                    if running is not None:
                        running.mul_(old).add_(new)
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked += self.total
                norm.pending.zero_()
                norm.groups = 0
        self.ranks.spread(self.buffers)

    def _old(self, norm: GroupedNorm) -> float:
        """What is left of the running statistics after the step."""
        if norm.momentum is not None:
            return (1 - norm.momentum) ** self.total
        before = int(norm.num_batches_tracked or 0)
        return before / (before + self.total)
