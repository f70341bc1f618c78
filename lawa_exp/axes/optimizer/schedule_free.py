"""Schedule-Free AdamW (Defazio et al. 2024), from the package `schedulefree`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.optimizer.groups import matrices_and_vectors
from lawa_exp.axes.optimizer.settings import OptimizerSettings
from lawa_exp.config.rules import number, setting
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class ScheduleFree(OptimizerSettings):
    """y = (1 - beta1) z + beta1 x is trained; x is what is evaluated, kept as a snapshot and averaged.

    Use it with lr=constant and a warm-up; its own warm-up is off. weight_lr_power and r weigh the average x.
    """

    evaluates_others: ClassVar[bool] = True
    beta1: float = setting(number(above=0, high=0.999999), "weight of the average x in the weights y that are trained")
    beta2: float = setting(
        number(low=0, high=0.999999), "decay of the second moment, the mean of the squared gradients"
    )
    eps: float = setting(number(above=0), "added to the denominator of an update")
    weight_decay: float = setting(
        number(low=0), "decay of the weights, decoupled from the gradient and multiplied by the learning rate"
    )
    weight_lr_power: float = setting(number(low=0), "power of the rate in the weights of the average x")
    r: float = setting(number(low=0), "power of the step in the weights of the average x")
    clip_norm: float = setting(
        number(low=0), "the largest global gradient norm; larger gradients are scaled down to it (0: no clipping)"
    )

    def build(self, model: nn.Module) -> Optimizer:
        try:
            import schedulefree
        except ImportError:
            raise UserError(
                "optimizer=schedule_free needs the package schedulefree: pip install 'lawa_exp[optim]'"
            ) from None
        optimizer: Optimizer = schedulefree.AdamWScheduleFree(
            matrices_and_vectors(model, self.weight_decay),
            lr=0.0,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            r=self.r,
            weight_lr_power=self.weight_lr_power,
        )
        optimizer.train()  # type: ignore[attr-defined]  # of that package
        return optimizer

    def evaluated(self, optimizer: Optimizer, live: dict[str, Tensor]) -> dict[str, Tensor]:
        """x by name, as `eval()` of the package would put it in place; y stays where it is."""
        import torch

        from lawa_exp.averaging.tensors import local_part

        rows = [(local_part(p), local_part(state["z"])) for p, state in optimizer.state.items() if "z" in state]
        z = {p.data_ptr(): of for p, of in rows if p.numel()}  # empty rows have no place
        weight = 1 - 1 / optimizer.param_groups[0]["betas"][0]
        with torch.no_grad():
            return {n: t.lerp(z[t.data_ptr()], weight) if t.data_ptr() in z else t for n, t in live.items()}
