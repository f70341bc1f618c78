"""One update of the weights. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lawa_exp.parallel.model import gathering, whole
from lawa_exp.parallel.optimizer import take_step
from lawa_exp.seams.callback import add_to
from lawa_exp.seams.objective import check_terms
from lawa_exp.system.errors import UserError
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
    torch.manual_seed(int(hash_of(t.config.seed, step, t.ranks.rank)) >> 1)  # dropout: no random state to save
    for call in t.callbacks.before_step:
        call(step)
    if t.objective.looks:
        passes = look(t, step, list(passes))
    numbers = back_propagate(t, passes)
    for after in t.callbacks.after_passes:
        add_to(numbers, after(step))
    numbers["grad_norm"] = norm = whole(nn.utils.get_total_norm([p.grad for p in t.parameters if p.grad is not None]))
    finite = norm.isfinite() & numbers.get("objective", numbers["loss"]).isfinite()
    if t.config.optimizer.clip_norm:
        nn.utils.clip_grads_with_norm_(t.parameters, t.config.optimizer.clip_norm, norm)
    for before in t.callbacks.before_update:
        add_to(numbers, before(step))
    gradients = [p.grad for p in t.parameters if p.grad is not None]
    if t.callbacks.before_update:  # which may have changed them
        finite &= whole(nn.utils.get_total_norm(gradients)).isfinite()
    t.diverged.logical_or_(~finite)
    numbers["bad"] = t.diverged.float()
    take_step(t.optimizer, rate, t.diverged, t.config.optimizer.evaluates_others)
    return numbers


def look(t: Setup, step: int, passes: list[tuple[Pass, tuple[Inputs, Tensor]]]) -> Passes:
    """The objective's walk over the whole batch, before the passes that train."""
    with t.looking():
        for at, (inputs, targets) in passes:
            t.statistics.before_pass(at)
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
            check_terms(terms, weights)
            scales |= {name: world / max(at.counts.get(name, at.batch), 1) for name in terms}
            weighted = [terms[name] * (weight * scales[name]) for name, weight in weights.items() if name in terms]
            sum(weighted[1:], weighted[0]).backward()
        for name, term in terms.items():
            sums[name] = sums[name] + term.detach() if name in sums else term.detach()
    if missing := weights.keys() - sums.keys():
        raise UserError(f"objective: its weights name {min(missing)}, which no pass gave; terms: {', '.join(sums)}")
    added = t.ranks.sum(torch.stack([of.float() for of in sums.values()])).unbind()
    means = {name: of * (scales[name] / world) for name, of in zip(sums, added, strict=True)}
    if dict(weights) != {"loss": 1.0}:
        means["objective"] = torch.stack([means[name] * weight for name, weight in weights.items()]).sum()
    return means
