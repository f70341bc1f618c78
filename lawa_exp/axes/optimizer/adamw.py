"""AdamW (Loshchilov and Hutter 2019), torch's fused kernel; decay on matrices only or on everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa_exp.axes.optimizer.groups import fusable, matrices_and_vectors
from lawa_exp.axes.optimizer.settings import OptimizerSettings
from lawa_exp.config.rules import number, one_of, setting

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class AdamW(OptimizerSettings):
    """`clip_norm`: the largest global gradient norm (0: none).

    decays: `matrices`, tensors of two or more dimensions, or `all`, as fairseq's Adam does.
    """

    beta1: float = setting(number(low=0, high=0.999999), "decay of the first moment, the mean of the gradients")
    beta2: float = setting(
        number(low=0, high=0.999999), "decay of the second moment, the mean of the squared gradients"
    )
    eps: float = setting(number(above=0), "added to the denominator of an update")
    weight_decay: float = setting(
        number(low=0), "decay of the weights, decoupled from the gradient and multiplied by the learning rate"
    )
    decays: str = setting(
        one_of("all", "matrices"),
        "which tensors decay: all, or matrices, those of two or more dimensions",
        before="matrices",
    )
    clip_norm: float = setting(
        number(low=0), "the largest global gradient norm; larger gradients are scaled down to it (0: no clipping)"
    )

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        groups = matrices_and_vectors(model, self.weight_decay)
        for group in groups if self.decays == "all" else ():
            group["weight_decay"] = self.weight_decay
        return torch.optim.AdamW(groups, lr=0.0, betas=(self.beta1, self.beta2), eps=self.eps, fused=fusable(model))
