"""BatchNorm's running statistics, and other buffers, in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lawa_exp.axes.layers.ghost_norm import GroupedNorm
from lawa_exp.seams.callback import Callback
from lawa_exp.seams.layers import keeping_statistics
from lawa_exp.seams.samples import Pass
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError


@dataclass(eq=False)
class Buffer:
    """One buffer of a module, and what it was before a step."""

    name: str
    module: nn.Module
    own_name: str
    tensor: Tensor
    version: int = 0
    copy: Tensor | None = None

    @property
    def replaced(self) -> bool:
        """Whether the module has another tensor in its place."""
        return self.module._buffers.get(self.own_name) is not self.tensor

    @property
    def is_saved(self) -> bool:
        return self.own_name not in self.module._non_persistent_buffers_set

    def look(self, content: bool) -> None:
        """Before a step. content: whether bytes are compared too."""
        self.version, self.copy = self.tensor._version, self.tensor.clone() if content else None

    @property
    def changed(self) -> bool:
        if self.tensor._version != self.version:
            return True
        return self.copy is not None and not torch.equal(self.copy, self.tensor)


class TrainingStatistics(Callback):
    """The buffers of what is trained, BatchNorm's above all: the same on every rank after each step.

    Without batch.norm_group each rank's BatchNorm sees its micro-batches, and rank 0's buffers go to the others (as
    DistributedDataParallel does, but at the end of a step and not before the next: what observes sees one model).
    With it, groups count in the running statistics in the order of their samples in the batch, each as one batch of
    torch's: r <- (1 - m) r + m s, one after the other, whatever ranks and micro-batches they were in.

    What is sent: the buffers of modules that keep statistics (`seams.layers`), and of the others those that a step has
    changed in this process. In its first step the contents are compared, and what one rank has changed all send; from
    then on version counters tell, which are assumed to be the same on every rank, and which a write through `.data`
    does not move. A buffer that is saved and is replaced by another tensor is refused, as the state would hold the old
    one; one that is not saved is taken for a cache, which each rank makes by itself, and is not sent.
    """

    def __init__(self, trained: nn.Module, size: int | None, ranks: Ranks) -> None:
        self.size, self.ranks, self.first = size, ranks, True
        self.norms = [m for m in trained.modules() if isinstance(m, GroupedNorm)]
        keeping = list(keeping_statistics(trained))
        tensors = [
            t for _, module, own in keeping for t in (*module.buffers(recurse=False), *own.statistics().values())
        ]
        self.sent = list({id(t): t for t in tensors}.values())
        self.buffers = list(_buffers(trained))
        of_statistics = {id(t) for t in self.sent}
        self.others = [b for b in self.buffers if id(b.tensor) not in of_statistics]
        for norm in self.norms:
            like = next(t for t in (norm.running_mean, *norm.parameters(), *trained.buffers()) if t is not None)
            norm.pending = torch.zeros(2, norm.num_features, device=like.device)
        self.total = 0  # groups in the step's batch
        self.counted: dict[GroupedNorm, int] = {}  # `num_batches_tracked` on the host
        self.shares: dict[tuple[float, int, int, int], Tensor] = {}

    def before_step(self, step: int) -> None:
        if self.ranks.world > 1:
            for buffer in self.others:
                buffer.look(content=self.first)

    def before_pass(self, at: Pass) -> None:
        if self.size is None:
            return
        self.total = at.batch // self.size
        start, count = at.first // self.size, len(at.samples) // self.size
        for norm in self.norms:
            norm.groups, norm.share = count, self._share(norm, start, count)

    @torch.no_grad()
    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        if self.norms:
            parts = [norm.pending.flatten() for norm in self.norms]
            summed = self.ranks.sum(torch.cat(parts)).split([p.numel() for p in parts])
            for norm, of_step in zip(self.norms, summed, strict=True):
                old = self._old(norm)
                for running, new in zip((norm.running_mean, norm.running_var), of_step.chunk(2), strict=True):
                    if running is not None:
                        running.mul_(old).add_(new)
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked += self.total
                    if norm in self.counted:
                        self.counted[norm] += self.total
                norm.pending.zero_()
                norm.groups = 0
        self._check_replaced()
        if self.ranks.world > 1:
            if self.others:
                self._find_changed()
            self.ranks.spread(self.sent)
        return {}

    def _check_replaced(self) -> None:
        for buffer in self.buffers:
            if buffer.is_saved and buffer.replaced:
                raise UserError(
                    f"buffer {buffer.name}: a step replaced it by another tensor; expected a buffer that is "
                    "changed in place (copy_, mul_, add_), or that is registered with persistent=False"
                )

    def _find_changed(self) -> None:
        """From here on what this step has changed is sent."""
        changed = {b.name for b in self.others if not b.replaced and b.changed}
        if self.first:
            changed = set().union(*self.ranks.all_of(changed))
            self.first = False
        for buffer in [b for b in self.others if b.name in changed]:
            buffer.copy = None
            self.others.remove(buffer)
            self.sent.append(buffer.tensor)

    def _share(self, norm: GroupedNorm, start: int, count: int) -> Tensor:
        """How much each of `count` groups from `start` on counts after the step [count], on the device.

        A copy to the device waits for it: one that is needed again is kept.
        """
        m, device = norm.momentum, norm.pending.device
        if m is None:
            return torch.full((count,), (1 - self._old(norm)) / self.total, device=device)
        key = (m, self.total, start, count)
        if key not in self.shares:
            share = [m * (1 - m) ** (self.total - 1 - j) for j in range(start, start + count)]
            self.shares[key] = torch.tensor(share, device=device)
        return self.shares[key]

    def _old(self, norm: GroupedNorm) -> float:
        """What is left of the running statistics after the step."""
        if norm.momentum is not None:
            return (1 - norm.momentum) ** self.total
        if norm not in self.counted:  # once in a process
            self.counted[norm] = int(norm.num_batches_tracked or 0)
        return self.counted[norm] / (self.counted[norm] + self.total)


def _buffers(trained: nn.Module) -> Iterator[Buffer]:
    """Each tensor once."""
    seen: set[int] = set()
    for prefix, module in trained.named_modules():
        for own_name, tensor in module._buffers.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield Buffer(f"{prefix}.{own_name}".lstrip("."), module, own_name, tensor)
