"""LAMB (You et al. 2020): each tensor's update of Adam's is scaled by the norm of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.optimizer.groups import EXCLUDED, groups_with_adaptation
from lawa_exp.axes.optimizer.settings import OptimizerSettings
from lawa_exp.config.rules import number, setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class LAMB(OptimizerSettings):
    """r = m_hat / (sqrt(v_hat) + eps), u = r + weight_decay * w, w <- w - rate * (|w| / |u|) * u (algorithm 2).

    With bias correction and phi(|w|) = |w|. The ratio is 1 where |w| or |u| is 0 and for what `adaptation_excludes`
    names; the exclusions from decay and from adaptation are separate.
    """

    beta1: float = setting(number(low=0, high=0.999999), "decay of the first moment, the mean of the gradients")
    beta2: float = setting(
        number(low=0, high=0.999999), "decay of the second moment, the mean of the squared gradients"
    )
    eps: float = setting(number(above=0), "added to the denominator of an update")
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

        class Lamb(torch.optim.Optimizer):
            def __init__(self, groups: list[dict[str, Any]]) -> None:
                super().__init__(groups, {"lr": 0.0})
                self.counts: dict[nn.Parameter, tuple[Tensor, int, int]] = {}  # its `step`, that one's version, and it

            def count(self, w: nn.Parameter, step: Tensor) -> int:
                """The number of this update of `w`. `step` is in the state; it is read only after it was loaded."""
                of, version, count = self.counts.get(w, (None, 0, 0))
                if of is not step or version != step._version:
                    count = int(step)
                step += 1
                self.counts[w] = step, step._version, count + 1
                return count + 1

            @torch.no_grad()
            def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
                beta1, beta2 = settings.beta1, settings.beta2
                for group in self.param_groups:
                    for w in group["params"]:
                        if w.grad is None:
                            continue
                        state = self.state[w]
                        if not state:
                            state["step"] = torch.zeros(())  # under this name it stays on the CPU
                            state["m"], state["v"] = torch.zeros_like(w), torch.zeros_like(w)
                        count = self.count(w, state["step"])
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

        groups = groups_with_adaptation(model, self.weight_decay, self.decay_excludes, self.adaptation_excludes)
        return Lamb(groups)
