"""A model's own tensors, and other weights in their place for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

COMPILED = "_orig_mod."  # what torch.compile puts into names


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and DistributedDataParallel."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def reshard(model: nn.Module) -> None:
    """Every FSDP2 module back to its shards: what the unsharded parameters hold is dropped."""
    for module in model.modules():
        if hasattr(module, "set_reshard_after_forward") and callable(again := getattr(module, "reshard", None)):
            again()


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers by name, no copies; of tied weights the first name.

    Of a sharded model (FSDP2) this rank's shards. Names are those of the model inside torch.compile and DDP.
    """
    model = unwrapped(model)
    reshard(model)
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensor = tensor.detach()
            tensors[name.replace(COMPILED, "")] = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return tensors


def averaged_names(model: nn.Module) -> frozenset[str]:
    """What averagers average: the parameters. Buffers are carried as they were last."""
    return frozenset(name.replace(COMPILED, "") for name, _ in unwrapped(model).named_parameters())


class Swap:
    """Puts other weights in place of the live ones, and the live bytes back; meanwhile nothing may be saved."""

    def __init__(self, model: nn.Module, live: Mapping[str, Tensor] | None = None) -> None:
        """live: the model's `live_tensors`, where the caller has them."""
        self.model = unwrapped(model)
        self.live = live_tensors(model) if live is None else live
        self.away = False

    @contextmanager
    def applied(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model computes with `weights` (names of `live`; on any device)."""
        assert not self.away, "weights are already swapped"
        assert weights.keys() == self.live.keys(), "the weights do not fit the model"
        with torch.no_grad():
            reshard(self.model)
            kept = {name: tensor.clone() for name, tensor in self.live.items()}
            self.away = True
            try:
                self._put(weights)
                yield
            finally:
                reshard(self.model)
                self._put(kept)
                self.away = False

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self.live.items():
            tensor.copy_(weights[name])
