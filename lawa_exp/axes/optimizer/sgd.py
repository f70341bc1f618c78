"""SGD with momentum, torch's fused kernel; decay (L2, inside the momentum) on matrices only or on everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.optimizer.groups import fusable, matrices_and_vectors
from lawa_exp.axes.optimizer.settings import OptimizerSettings
from lawa_exp.config.rules import boolean, number, one_of, setting
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class SGD(OptimizerSettings):
    """v <- momentum * v + (g + weight_decay * w); w <- w - rate * v, or * (g + weight_decay * w + momentum * v).

    decays: `all`, as in the classical recipes, or `matrices`.
    """

    follows_gradient: ClassVar[bool] = True
    momentum: float = setting(number(low=0, high=0.999999), "share of the last update's velocity that is kept")
    nesterov: bool = setting(boolean(), "look ahead along the momentum (Nesterov)")
    weight_decay: float = setting(
        number(low=0), "decay of the weights, decoupled from the gradient and multiplied by the learning rate"
    )
    decays: str = setting(
        one_of("all", "matrices"), "which tensors decay: all, or matrices, those of two or more dimensions"
    )
    clip_norm: float = setting(
        number(low=0), "the largest global gradient norm; larger gradients are scaled down to it (0: no clipping)"
    )

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov=True: expected a momentum above 0")

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        groups = matrices_and_vectors(model, self.weight_decay)
        for group in groups if self.decays == "all" else ():
            group["weight_decay"] = self.weight_decay
        sharded = any(hasattr(p, "to_local") for p in model.parameters())  # which its fused kernel does not take
        fused = fusable(model) and not sharded
        return torch.optim.SGD(groups, lr=0.0, momentum=self.momentum, nesterov=self.nesterov, fused=fused)
