"""A model's own tensors, whole or this rank's shards of them, and other weights in their place for a while."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

COMPILED = "_orig_mod."  # what torch.compile puts into names

_swapped: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models in which other weights are in place


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DistributedDataParallel and DataParallel."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def reshard(model: nn.Module) -> None:
    """Every FSDP2 module back to its shards: what the unsharded parameters hold is dropped."""
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise TypeError("FullyShardedDataParallel flattens parameters: use torch.distributed.fsdp.fully_shard")
        if hasattr(module, "set_reshard_after_forward") and callable(again := getattr(module, "reshard", None)):
            again()


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers by name, no copies; of tied weights the first name.

    Those of a sharded model (FSDP2) are DTensors. Names are those of the model inside torch.compile and DDP. TypeError
    for a model inside the older FullyShardedDataParallel.
    """
    model = unwrapped(model)
    reshard(model)
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name.replace(COMPILED, "")] = tensor.detach()
    return tensors


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """`named_tensors`, of a sharded model this rank's shards."""
    return {name: local_part(tensor) for name, tensor in named_tensors(model).items()}


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor, of which a rank holds a part."""
    return hasattr(tensor, "to_local")


def local_part(tensor: Any) -> Tensor:
    return tensor.to_local() if is_sharded(tensor) else tensor


def averaged_names(model: nn.Module) -> frozenset[str]:
    """What averagers average: floating-point parameters. All else is carried as it was last."""
    named = unwrapped(model).named_parameters()
    return frozenset(name.replace(COMPILED, "") for name, p in named if p.is_floating_point())


def norms_in(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm modules that keep running statistics, by name."""
    modules = unwrapped(model).named_modules()
    kept = ((n.replace(COMPILED, ""), m) for n, m in modules if isinstance(m, _BatchNorm))
    return {name: m for name, m in kept if m.running_mean is not None}


def statistics_names(model: nn.Module) -> frozenset[str]:
    """BatchNorm's running means and variances, as they are named in `named_tensors`."""
    prefixes = (f"{name}." if name else "" for name in norms_in(model))
    return frozenset(prefix + kind for prefix in prefixes for kind in ("running_mean", "running_var"))


class Swap:
    """Puts other weights in place of the live ones, and the live bytes back; meanwhile nothing may be saved."""

    def __init__(self, model: nn.Module, live: Mapping[str, Tensor] | None = None) -> None:
        """live: the model's `live_tensors`, where the caller has them."""
        self.model = unwrapped(model)
        self.live = live_tensors(model) if live is None else live

    @property
    def away(self) -> bool:
        """Whether the live weights are, in this swap or another one of the same model."""
        return self.model in _swapped

    @contextmanager
    def applied(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model computes with `weights` (names of `live`; on any device)."""
        assert not self.away, "weights are already swapped"
        assert weights.keys() == self.live.keys(), "the weights do not fit the model"
        reshard(self.model)
        kept = {name: tensor.clone() for name, tensor in self.live.items()}
        _swapped.add(self.model)
        try:
            self._put(weights)
            yield
        finally:
            with uninterrupted():  # a KeyboardInterrupt half-way would leave a mix that looks like live weights
                reshard(self.model)
                self._put(kept)
                _swapped.discard(self.model)

    def place(self, weights: Mapping[str, Tensor]) -> None:
        """Puts them in for good, without a copy of what was there: for a model that is only evaluated."""
        assert not self.away, "weights are already swapped"
        assert weights.keys() == self.live.keys(), "the weights do not fit the model"
        reshard(self.model)
        self._put(weights)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self.live.items():
            tensor.copy_(weights[name])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT is handled at the end (in the main thread, where Python handles signals)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler or signal.SIG_DFL)  # None: it was not set from Python
        if came:
            signal.raise_signal(signal.SIGINT)
