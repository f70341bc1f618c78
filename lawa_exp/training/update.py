"""One update of the weights. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lawa_exp.averaging.tensors import local_part
from lawa_exp.parallel.model import gathering, whole
from lawa_exp.seams.layers import statistics_kept
from lawa_exp.system.hashing import hash_of

if TYPE_CHECKING:
    from lawa_exp.seams.dataset import Inputs
    from lawa_exp.seams.samples import Pass
    from lawa_exp.training.setup import Setup

Passes = Iterable[tuple["Pass", tuple["Inputs", Tensor]]]


def update(t: Setup, step: int, rate: float, passes: Passes) -> dict[str, Tensor]:
    """Trains on the batch of `step`; returns the numbers of its row, on the device.

    `loss`, the batch's mean before the update; `objective`, where something else is trained; the other terms;
    `grad_norm`, before clipping; `bad`, 1 from the first step on that is not finite: no update changes weights then.
    """
    for call in t.callbacks.before_step:
        call(step)
    if t.objective.looks:
        passes = look(t, step, list(passes))
    torch.manual_seed(int(hash_of(t.config.seed, step, t.ranks.rank)) >> 1)  # dropout: no random state to save
    numbers = back_propagate(t, passes)
    for after in t.callbacks.after_passes:
        numbers |= after(step)
    gradients = [p.grad for p in t.parameters if p.grad is not None]
    numbers["grad_norm"] = norm = whole(nn.utils.get_total_norm(gradients))
    if t.config.optimizer.clip_norm:
        nn.utils.clip_grads_with_norm_(t.parameters, t.config.optimizer.clip_norm, norm)
    for before in t.callbacks.before_update:
        numbers |= before(step)
    trained = numbers.get("objective", numbers["loss"])
    t.diverged.logical_or_(~(norm.isfinite() & trained.isfinite()))
    numbers["bad"] = t.diverged.float()
    apply(t, rate, gradients)
    return numbers


def look(t: Setup, step: int, passes: list[tuple[Pass, tuple[Inputs, Tensor]]]) -> Passes:
    """The objective's walk over the whole batch, before the passes that train."""
    with torch.no_grad(), statistics_kept(t.model), t.autocast():  # a batch counts once in them
        for at, (inputs, targets) in passes:
            t.objective.look(at, inputs, targets)
    t.objective.looked(step, t.ranks)
    return passes


def back_propagate(t: Setup, passes: Passes) -> dict[str, Tensor]:
    """Gradients of the whole batch, and the means of the terms over it.

    DDP and FSDP divide the gradient by the ranks, so that is taken back.
    """
    weights, world = t.objective.weights, t.ranks.world
    sums: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for at, (inputs, targets) in passes:
        for before in t.callbacks.before_pass:
            before(at)
        with gathering(t.trained, at.last):
            with t.autocast():
                terms = t.trained(inputs, targets)
            scales = {name: world / max(at.counts.get(name, at.batch), 1) for name in terms}
            weighted = [terms[name] * (weight * scales[name]) for name, weight in weights.items() if name in terms]
            sum(weighted[1:], weighted[0]).backward()
        for name, term in terms.items():
            sums[name] = sums[name] + term.detach() if name in sums else term.detach()
    added = t.ranks.sum(torch.stack(list(sums.values()))).unbind()
    means = {name: of * (scales[name] / world) for name, of in zip(sums, added, strict=True)}
    if dict(weights) != {"loss": 1.0}:
        means["objective"] = torch.stack([means[name] * weights[name] for name in weights if name in means]).sum()
    return means


def apply(t: Setup, rate: float, gradients: list[Tensor]) -> None:
    """The optimizer's step, which changes no weights once the training has diverged."""
    for group in t.optimizer.param_groups:
        group["lr"] = rate * group.get("rate_ratio", 1.0)
    if all(group.get("fused") for group in t.optimizer.param_groups):
        t.optimizer.found_inf = t.diverged.float()  # type: ignore[attr-defined]
    else:  # a step along no gradient: on a GPU two of them may come before the host knows
        for gradient in gradients:
            local_part(gradient).masked_fill_(t.diverged, 0.0)
    t.optimizer.step()
    t.optimizer.zero_grad(set_to_none=True)
