"""LARS (You et al. 2017): each tensor's update is scaled by the norm of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa_exp.axes.optimizer.groups import EXCLUDED, groups_with_adaptation
from lawa_exp.axes.optimizer.settings import OptimizerSettings
from lawa_exp.config.rules import number, one_of, setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class LARS(OptimizerSettings):
    """SGD with momentum and a rate for each tensor, lambda = trust * |w| / (|g| + weight_decay * |w| + eps).

    Two forms of momentum are in use and are not equivalent when the rate changes:
    momentum_form=scaled_velocity: v <- m v + rate * lambda * (g + weight_decay w), w <- w - v (paper, algorithm 1);
    momentum_form=scaled_update:   v <- m v + g + weight_decay w, w <- w - rate * lambda * v.
    lambda is 1 where |w| or |g| is 0 and for what `adaptation_excludes` names.
    """

    momentum: float = setting(number(low=0, high=0.999999), "share of the last update's velocity that is kept")
    momentum_form: str = setting(
        one_of("scaled_velocity", "scaled_update"),
        "where the rate multiplies: in the velocity (the paper) or in the update",
    )
    trust: float = setting(number(above=0), "the trust coefficient, which multiplies |w| / |g|")
    eps: float = setting(number(low=0), "added to the denominator of an update")
    weight_decay: float = setting(
        number(low=0), "decay of the weights, decoupled from the gradient and multiplied by the learning rate"
    )
    decay_excludes: str = setting(EXCLUDED, "tensors without weight decay: vectors (biases and norms) or none")
    adaptation_excludes: str = setting(EXCLUDED, "tensors without the trust ratio: vectors (biases and norms) or none")
    clip_norm: float = setting(
        number(low=0), "the largest global gradient norm; larger gradients are scaled down to it (0: no clipping)"
    )

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        settings = self

        class Lars(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
                for group in self.param_groups:
                    rate, decay = group["lr"], group["weight_decay"]
                    for w in group["params"]:
                        if w.grad is None:
                            continue
                        state = self.state[w]
                        if not state:
                            state["velocity"] = torch.zeros_like(w)
                        v, update = state["velocity"], w.grad.add(w, alpha=decay)
                        scale = torch.ones((), dtype=w.dtype, device=w.device)
                        if group["adapts"]:
                            w_norm, g_norm = w.norm(), w.grad.norm()
                            scaled = settings.trust * w_norm / (g_norm + decay * w_norm + settings.eps)
                            scale = torch.where((w_norm > 0) & (g_norm > 0), scaled, scale)
                        if settings.momentum_form == "scaled_velocity":
                            w.sub_(v.mul_(settings.momentum).add_(update.mul_(rate * scale)))
                        else:
                            w.sub_(v.mul_(settings.momentum).add_(update).mul(rate * scale))

        groups = groups_with_adaptation(model, self.weight_decay, self.decay_excludes, self.adaptation_excludes)
        return Lars(groups, {"lr": 0.0})
