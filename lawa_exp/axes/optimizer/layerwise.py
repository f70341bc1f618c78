"""LARS (You et al. 2017) and LAMB (You et al. 2020): each tensor's update is scaled by the norm of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.optimizer.groups import matrices_and_vectors
from lawa_exp.config.rules import number, one_of, setting

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

EXCLUDED = one_of("vectors", "none")  # tensors of fewer than two dimensions: biases and norms


def _groups(model: nn.Module, weight_decay: float, decay_excludes: str, adaptation_excludes: str) -> list[Any]:
    groups = matrices_and_vectors(model, weight_decay)
    for group in groups:
        vectors = group["params"][0].dim() < 2
        group["adapts"] = not (vectors and adaptation_excludes == "vectors")
        if decay_excludes == "none":
            group["weight_decay"] = weight_decay
    return groups


@dataclass(frozen=True)
class LARS:
    """SGD with momentum and a rate for each tensor, lambda = trust * |w| / (|g| + weight_decay * |w| + eps).

    Two forms of momentum are in use and are not equivalent when the rate changes:
    momentum_form=scaled_velocity: v <- m v + rate * lambda * (g + weight_decay w), w <- w - v (paper, algorithm 1);
    momentum_form=scaled_update:   v <- m v + g + weight_decay w, w <- w - rate * lambda * v.
    lambda is 1 where |w| or |g| is 0 and for what `adaptation_excludes` names.
    """

    momentum: float = setting(number(low=0, high=0.999999))
    momentum_form: str = setting(one_of("scaled_velocity", "scaled_update"))
    trust: float = setting(number(above=0))
    eps: float = setting(number(low=0))
    weight_decay: float = setting(number(low=0))
    decay_excludes: str = setting(EXCLUDED)
    adaptation_excludes: str = setting(EXCLUDED)
    clip_norm: float = setting(number(low=0))

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        settings = self

        class Lars(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
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

        return Lars(_groups(model, self.weight_decay, self.decay_excludes, self.adaptation_excludes), {"lr": 0.0})


@dataclass(frozen=True)
class LAMB:
    """r = m_hat / (sqrt(v_hat) + eps), u = r + weight_decay * w, w <- w - rate * (|w| / |u|) * u (algorithm 2).

    With bias correction and phi(|w|) = |w|. The ratio is 1 where |w| or |u| is 0 and for what `adaptation_excludes`
    names; the exclusions from decay and from adaptation are separate.
    """

    beta1: float = setting(number(low=0, high=0.999999))
    beta2: float = setting(number(low=0, high=0.999999))
    eps: float = setting(number(above=0))
    weight_decay: float = setting(number(low=0))
    decay_excludes: str = setting(EXCLUDED)
    adaptation_excludes: str = setting(EXCLUDED)
    clip_norm: float = setting(number(low=0))

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        settings = self

        class Lamb(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                beta1, beta2 = settings.beta1, settings.beta2
                for group in self.param_groups:
                    for w in group["params"]:
                        if w.grad is None:
                            continue
                        state = self.state[w]
                        if not state:
                            state["step"] = torch.zeros(())  # under this name it stays on the CPU
                            state["m"], state["v"] = torch.zeros_like(w), torch.zeros_like(w)
                        state["step"] += 1
                        count = int(state["step"])
                        first, second = 1 - beta1**count, 1 - beta2**count
                        m = state["m"].lerp_(w.grad, 1 - beta1)
                        v = state["v"].mul_(beta2).addcmul_(w.grad, w.grad, value=1 - beta2)
                        u = (m / first).div_((v / second).sqrt_().add_(settings.eps))
                        u.add_(w, alpha=group["weight_decay"])
                        ratio = torch.ones((), dtype=w.dtype, device=w.device)
                        if group["adapts"]:
                            w_norm, u_norm = w.norm(), u.norm()
                            ratio = torch.where((w_norm > 0) & (u_norm > 0), w_norm / u_norm, ratio)
                        w.sub_(u.mul_(group["lr"] * ratio))

        groups = _groups(model, self.weight_decay, self.decay_excludes, self.adaptation_excludes)
        return Lamb(groups, {"lr": 0.0})
