"""BatchNorm's running statistics in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lawa_exp.axes.layers.ghost_norm import GroupedNorm
from lawa_exp.seams.callback import Callback
from lawa_exp.seams.samples import Pass
from lawa_exp.system.distributed import Ranks


class TrainingStatistics(Callback):
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

    def before_pass(self, at: Pass) -> None:
        if self.size is None:
            return
        self.total = at.batch // self.size
        start, count = at.first // self.size, len(at.samples) // self.size
        shares: dict[float | None, Tensor] = {}
        for norm in self.norms:
            if norm.momentum not in shares:
                old, m = self._old(norm), norm.momentum
                after = [self.total - 1 - j for j in range(start, start + count)]  # groups after each one
                share = [(1 - old) / self.total if m is None else m * (1 - m) ** left for left in after]
                shares[m] = torch.tensor(share, device=norm.pending.device)
            norm.groups, norm.share = count, shares[norm.momentum]

    @torch.no_grad()
    def after_passes(self, step: int) -> Mapping[str, Tensor]:
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
        return {}

    def _old(self, norm: GroupedNorm) -> float:
        """What is left of the running statistics after the step."""
        if norm.momentum is not None:
            return (1 - norm.momentum) ** self.total
        before = int(norm.num_batches_tracked or 0)
        return before / (before + self.total)
