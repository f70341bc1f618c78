"""An optimizer from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.optimizer.settings import OptimizerSettings
from lawa_exp.config.rules import arguments, number, setting, text

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class CustomOptimizer(OptimizerSettings):
    """`builder(model, **args)`, a `torch.optim.Optimizer` of the model's trained parameters.

    The rate of each of its groups is set before each update: the schedule's times the group's `rate_ratio` (default 1).
    """

    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()
    clip_norm: float = setting(
        number(low=0), "the largest global gradient norm; larger gradients are scaled down to it (0: no clipping)"
    )

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        from lawa_exp.storage import custom

        optimizer: Optimizer = custom.made(
            self,
            "optimizer",
            model,
            expected="a torch.optim.Optimizer",
            fits=lambda made: isinstance(made, torch.optim.Optimizer),
        )
        return optimizer
