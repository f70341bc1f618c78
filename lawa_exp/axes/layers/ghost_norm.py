"""BatchNorm over groups of samples: the same statistics on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lawa_exp.axes.layers.settings import LayersSettings
from lawa_exp.seams.layers import OfBatchNorm, buffers_kept
from lawa_exp.system.errors import UserError


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

    def statistics(self) -> dict[str, Tensor]:
        return OfBatchNorm(self).statistics()

    def reset(self) -> None:
        self.reset_running_stats()

    def observe(self) -> AbstractContextManager[None]:
        return OfBatchNorm(self).observe()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        pending = getattr(self, "pending", None)  # there in training alone
        with buffers_kept(self):
            if pending is not None:
                self.pending = pending.clone()  # type: ignore[assignment]
            try:
                yield
            finally:
                if pending is not None:
                    self.pending = pending


class GroupedNorm1d(GroupedNorm, nn.BatchNorm1d):
    pass


class GroupedNorm2d(GroupedNorm, nn.BatchNorm2d):
    pass


class GroupedNorm3d(GroupedNorm, nn.BatchNorm3d):
    pass


@dataclass(frozen=True)
class GhostNorm(LayersSettings):
    """batch.norm_group: BatchNorm over groups of so many samples."""

    size: int

    def apply(self, model: nn.Module) -> None:
        group_norms(model, self.size)


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
