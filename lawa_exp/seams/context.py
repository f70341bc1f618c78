"""What a training hands to the choices on its seams when it builds them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lawa_exp.seams.batches import Batches
    from lawa_exp.seams.dataset import Dataset
    from lawa_exp.seams.objective import Objective
    from lawa_exp.system.distributed import Ranks


@dataclass(frozen=True)
class Context:
    """The same objects for all of them. Nobody gets the budget or the horizon: a share of it is a setting's.

    objective: as it is called in a pass of its own, neither compiled nor wrapped. autocast: a fresh context at each
    call. logged_every: steps between two training rows.
    """

    seed: int
    data: Dataset
    batches: Batches
    objective: Objective
    optimizer: torch.optim.Optimizer
    averaged: frozenset[str]
    ranks: Ranks
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    logged_every: int

    @property
    def model(self) -> nn.Module:
        return self.objective.model
