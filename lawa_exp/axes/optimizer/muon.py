"""Muon (Jordan et al. 2024), torch's own, for the hidden matrices; AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa_exp.axes.optimizer.groups import fusable, matrices_and_vectors
from lawa_exp.axes.optimizer.settings import OptimizerSettings
from lawa_exp.config.rules import boolean, integer, number, one_of, setting
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

HEADS = ("lm_head", "head", "fc", "classifier", "linear")  # names of output layers


@dataclass(frozen=True)
class Muon(OptimizerSettings):
    """Two-dimensional weights but embeddings and output layers get Muon, the others AdamW.

    adjust_lr: `match_rms_adamw` scales Muon's updates so that AdamW's rate and decay fit both (Liu et al. 2025);
    `original` is Jordan's. adamw_rate_ratio: AdamW's rate as a multiple of the schedule's.
    """

    momentum: float = setting(number(low=0, high=0.999999), "share of the last update's velocity that is kept")
    nesterov: bool = setting(boolean(), "look ahead along the momentum (Nesterov)")
    ns_steps: int = setting(integer(1), "Newton-Schulz iterations of an update")
    adjust_lr: str = setting(
        one_of("match_rms_adamw", "original"),
        "match_rms_adamw: scaled so that AdamW's rate and decay fit; original: Jordan's",
    )
    weight_decay: float = setting(
        number(low=0), "decay of the weights, decoupled from the gradient and multiplied by the learning rate"
    )
    adamw_rate_ratio: float = setting(
        number(above=0), "learning rate of the AdamW part, as a multiple of the schedule's"
    )
    beta1: float = setting(number(low=0, high=0.999999), "AdamW part: decay of the first moment")
    beta2: float = setting(number(low=0, high=0.999999), "AdamW part: decay of the second moment")
    eps: float = setting(number(above=0), "AdamW part: added to the denominator of an update")
    clip_norm: float = setting(
        number(low=0), "the largest global gradient norm; larger gradients are scaled down to it (0: no clipping)"
    )

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        hidden = hidden_matrices(model)
        if not hidden:
            raise UserError(
                "optimizer=muon: the model has no two-dimensional weights but embeddings and output layers; "
                "choose another optimizer"
            )
        ids = {id(p) for p in hidden}
        others = matrices_and_vectors(model, self.weight_decay)
        for group in others:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
            group["rate_ratio"] = self.adamw_rate_ratio
        others = [g for g in others if g["params"]]
        optimizers: list[Optimizer] = [
            torch.optim.Muon(
                hidden,
                lr=0.0,
                weight_decay=self.weight_decay,
                momentum=self.momentum,
                nesterov=self.nesterov,
                ns_steps=self.ns_steps,
                adjust_lr_fn=self.adjust_lr,
            )
        ]
        if others:
            betas = (self.beta1, self.beta2)
            optimizers.append(torch.optim.AdamW(others, lr=0.0, betas=betas, eps=self.eps, fused=fusable(model)))
        return together(optimizers)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained two-dimensional weights that belong to no embedding and no output layer.

    Of modules with an output layer's name the innermost counts: CCT's `classifier` holds its blocks and an `fc`.
    """
    from torch import nn

    left_out = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    heads = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in HEADS}
    for name, module in heads.items():
        if not any(inner.startswith(f"{name}.") for inner in heads):
            left_out |= {id(p) for p in module.parameters()}
    return [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in left_out]


def together(optimizers: list[Optimizer]) -> Optimizer:
    """Several optimizers as one: their groups one after another, their states in one mapping."""
    from torch.optim import Optimizer

    class Together(Optimizer):
        def __init__(self) -> None:
            super().__init__([g for o in optimizers for g in o.param_groups], {})
            self._hand_over()

        def _hand_over(self) -> None:
            """Every part works on its share of the groups and on the one state."""
            first = 0
            for o in optimizers:
                o.param_groups = self.param_groups[first : first + len(o.param_groups)]
                o.state = self.state
                first += len(o.param_groups)

        def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
            for o in optimizers:
                o.step()

        def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
            super().load_state_dict(dict(state_dict))
            self._hand_over()

    return Together()
