"""Watches only read: one that touches weights, gradients or random numbers is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lawa_exp.seams.callback import Callback, overridden
from lawa_exp.system.errors import Failed, UserError

PIECE = 1 << 22  # bytes
WHOLE = 1000  # calls from one comparison of bytes to the next
MOMENTS = ("before_step", "before_pass", "after_passes", "arrived")


def built_guarded(name: str, build: Callable[[], Callback], objective: nn.Module, device: torch.device) -> Callback:
    """The watch that `build` gives, which may change nothing either; see `guarded`."""
    return guarded(name, _checked(name, "builder", build, objective, device)(), objective, device)


def guarded(name: str, watch: Callback, objective: nn.Module, device: torch.device) -> Callback:
    """The watch, checked at each moment. UserError where it has one in which weights may be changed.

    In the first call of a moment and in every thousandth the bytes of all tensors are compared, in the others their
    version counters, which a write through `.data` does not move. Hooks that a watch registers are not checked.
    """
    for moment in ("begin", "after_update"):
        if overridden(watch, moment):
            raise UserError(f"watch={name}: it only reads, and may have no {moment}; choose update={name}")
    for moment in MOMENTS:
        if overridden(watch, moment):
            setattr(watch, moment, _checked(name, moment, getattr(watch, moment), objective, device))
    return watch


def _checked(
    name: str, moment: str, call: Callable[..., Any], objective: nn.Module, device: torch.device
) -> Callable[..., Any]:
    calls = 0

    def checked(*arguments: Any) -> Any:
        nonlocal calls
        whole, calls = calls % WHOLE == 0, calls + 1
        before = _seen(objective, device, whole)
        result = call(*arguments)
        after = _seen(objective, device, whole)
        if changed := [what for what in {**before, **after} if before.get(what) != after.get(what)]:
            raise Failed(f"watch={name}: its {moment} changed {changed[0]}; a watch may only read")
        return result

    return checked


def _seen(objective: nn.Module, device: torch.device, whole: bool) -> Mapping[str, object]:
    """What a watch may not change, by what it is called; equal where nothing was. whole: the bytes of tensors too."""
    parameters = dict(objective.named_parameters())
    tensors = {**parameters, **dict(objective.named_buffers())}
    tensors |= {f"the gradient of {n}": p.grad for n, p in parameters.items() if p.grad is not None}
    seen: dict[str, object] = {
        name: (id(t), t._version, _digest(t.detach()) if whole else None) for name, t in tensors.items()
    }
    seen["the random state"] = torch.get_rng_state().numpy().tobytes()
    if device.type == "cuda":
        seen["the random state of the GPU"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return seen


def _digest(tensor: Tensor) -> int:
    """Of its bytes, weighted by their places; a NaN is as good as any number. Piece by piece, for want of memory."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    pieces = local.contiguous().reshape(-1).view(torch.uint8).split(PIECE)
    weighted = (piece * (torch.arange(len(piece), device=piece.device) % 251 + 1) for piece in pieces)
    return int(sum((piece.sum() * (number + 1) for number, piece in enumerate(weighted)), torch.tensor(0)))
