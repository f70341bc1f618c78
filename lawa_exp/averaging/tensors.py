"""A model's own tensors, whole or this rank's shards of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from lawa_exp.seams.layers import Statistics, keeping_statistics
from lawa_exp.storage.store import Rows
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

COMPILED = "_orig_mod."  # what torch.compile puts into names
CHECKPOINTED = "_checkpoint_wrapped_module."  # what torch's activation checkpoints put into names, but no state dict's


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DistributedDataParallel and DataParallel."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def unwrapped_name(name: str) -> str:
    """A module's or a parameter's, as it is without wrappers."""
    return name.replace(COMPILED, "").replace(CHECKPOINTED, "")


def reshard(model: nn.Module) -> None:
    """Every FSDP2 module back to its shards: what the unsharded parameters hold is dropped."""
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise TypeError("FullyShardedDataParallel flattens parameters: use torch.distributed.fsdp.fully_shard")
        if hasattr(module, "set_reshard_after_forward") and callable(again := getattr(module, "reshard", None)):
            again()


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers by name, no copies; of tied weights the first name.

    Those of a sharded model (FSDP2) are DTensors. Names are those of the state dict of the model inside torch.compile
    and DDP. TypeError for a model inside the older FullyShardedDataParallel.
    """
    return {name: tensor.detach() for name, tensor in _stored(model).items()}


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """`named_tensors`, of which each is the very object that the model computes with."""
    seen: dict[int, str] = {}
    return {name: tensor for name, tensor in _entries(model) if seen.setdefault(id(tensor), name) == name}


def all_names(model: nn.Module) -> dict[str, str]:
    """Every name of a tensor in the model's state dict, and its name in `named_tensors`: of tied weights the first."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _entries(model)}


def _entries(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors of its state dict by their names without torch.compile's. UserError: two tensors have one name."""
    model = unwrapped(model)
    reshard(model)
    tensors: dict[str, Tensor] = {}
    for wrapped, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            name = wrapped.replace(COMPILED, "")
            if tensors.setdefault(name, tensor) is not tensor:
                raise UserError(f"{wrapped}: the model has two tensors of this name without torch.compile's {COMPILED}")
    return list(tensors.items())


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """`named_tensors`, of a sharded model this rank's shards."""
    return {name: local_part(tensor) for name, tensor in named_tensors(model).items()}


class Observed:
    """A model's tensors, step after step: its state dict is made again only where the model has changed.

    A copy or a pickle has those of the model's copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.signature: list[Any] | None = None  # of the model that has these tensors
        self.stored: dict[str, Tensor] = {}
        self.averaged: frozenset[str] = frozenset()

    def __reduce__(self) -> tuple[object, ...]:
        return Observed, (self.model,)

    def tensors(self) -> tuple[dict[str, Tensor], frozenset[str]]:
        """(`live_tensors`, the names of those that are parameters to be averaged). UserError as of `averaged_names`."""
        model = unwrapped(self.model)
        reshard(model)
        signature = _signature(model)
        if signature != self.signature:
            self.signature, self.stored = None, _stored(model)
            self.averaged = frozenset(_parameters(model, self.stored))
            own = {id(t) for t in (*model.parameters(), *model.buffers())}
            if all(id(t) in own for t in self.stored.values()):  # what a hook makes is new each time
                self.signature = signature
        return {name: local_part(t.detach()) for name, t in self.stored.items()}, self.averaged


def _signature(model: nn.Module) -> list[Any]:
    """What decides the state dict of a model, and which of it is averaged; equal where neither has changed."""
    signature: list[Any] = []
    for module in model.modules():
        signature += [id(module), *module._modules, len(module._state_dict_hooks), *module._non_persistent_buffers_set]
        for tensors in (module._parameters, module._buffers):
            signature += [(name, id(t), t.dtype, t.requires_grad) for name, t in tensors.items() if t is not None]
    return signature


def averaged_names(model: nn.Module) -> frozenset[str]:
    """What averagers average: floating-point parameters. All else is carried as it was last.

    Names are those of the state dict, whatever the modules are called: what is averaged is known by the tensor itself.
    UserError names a parameter that the state dict does not hold itself, a complex one that is trained, and what lies
    in the memory of a parameter under a name of its own, and a lazy module's parameter that has no shape yet.
    """
    lazy = next((name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)), None)
    if lazy is not None:
        raise UserError(f"{unwrapped_name(lazy)} has no shape yet: run one forward pass, then make the averager")
    stored = _stored(model)
    averaged = _parameters(model, stored)
    taken: dict[int, list[tuple[int, int, str]]] = {}
    for name, parameter in averaged.items():
        storage, begin, end = _memory(parameter)
        taken.setdefault(storage, []).append((begin, end, name))
    for name in stored.keys() - averaged.keys():
        storage, begin, end = _memory(stored[name])
        for first, last, parameter_name in taken.get(storage, []):
            if begin < last and first < end:
                raise UserError(
                    f"{name} cannot be averaged: it is no parameter, and lies in the memory of {parameter_name}; "
                    "make it a buffer that is not persistent, or leave it out of the state_dict()"
                )
    return frozenset(averaged)


def _parameters(model: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `stored`, the model's state dict, that are averaged."""
    model = unwrapped(model)
    names = {id(tensor): name for name, tensor in stored.items()}
    averaged: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in names:
            name = unwrapped_name(name)
            # A frozen one that the state dict leaves out is its own average.
            if parameter.requires_grad or (parameter.is_floating_point() and name in stored):
                raise UserError(
                    f"{name} cannot be averaged: the model's state_dict() holds a copy of this parameter, or nothing, "
                    "in its place; average a model without the hook that casts, copies or leaves it out"
                )
        elif parameter.is_floating_point():
            averaged[names[id(parameter)]] = parameter
        elif parameter.requires_grad:
            raise UserError(
                f"{names[id(parameter)]} has dtype {str(parameter.dtype).removeprefix('torch.')}, which is not "
                "averaged; expected floating-point parameters (of complex ones: torch.view_as_real)"
            )
    return averaged


def _memory(tensor: Tensor) -> tuple[int, int, int]:
    """Its storage, and the first byte and the end in it; nothing for one that is sharded, or has no memory."""
    if is_sharded(tensor) or tensor.layout != torch.strided or not tensor.numel():
        return 0, 0, 0
    try:
        storage = tensor.untyped_storage().data_ptr()
    except RuntimeError:  # of a class that wraps other tensors
        return 0, 0, 0
    first = int(tensor.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size = tensor.element_size() if storage else 0  # on meta
    return storage, first * size, (last + 1) * size


def statistics_in(model: nn.Module) -> dict[str, Statistics]:
    """The modules that keep statistics of their own, by name: BatchNorms and others (`seams.layers`)."""
    return {unwrapped_name(name): own for name, _, own in keeping_statistics(unwrapped(model))}


def statistics_names(model: nn.Module) -> frozenset[str]:
    """What those modules keep, BatchNorm's running means and variances above all, by its names in `named_tensors`.

    UserError names one that the state dict does not hold itself.
    """
    names = {id(tensor): name for name, tensor in _stored(model).items()}
    statistics = set()
    for prefix, own in statistics_in(model).items():
        for kind, tensor in own.statistics().items():
            if id(tensor) not in names:
                name = f"{prefix}.{kind}".lstrip(".")
                raise UserError(f"{name}: the model's state_dict() holds a copy of it, or nothing, in its place")
            statistics.add(names[id(tensor)])
    return frozenset(statistics)


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Whether it is a DTensor, of which each rank has a part."""
    return hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if is_sharded(tensor) else tensor


def copy_like(part: Tensor, like: Tensor) -> Tensor:
    """A copy of `part`, this rank's of a tensor that is distributed as `like` is, as a tensor distributed so."""
    if not is_sharded(like):
        return part.clone()
    copy = torch.empty_like(like, dtype=part.dtype, device=part.device)
    local_part(copy).copy_(part)
    return copy


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which `part` is this rank's; a collective if `like` is distributed."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    whole = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
    )
    return whole.full_tensor()


@torch.no_grad()
def load_live(
    live: Mapping[str, Tensor], tensors: Mapping[str, Tensor], rows: Mapping[str, Rows] | None = None
) -> None:
    """Copies `tensors`, which are whole, over the live ones. rows: of those of a sharded model what this rank holds.

    UserError names the first whose name or shape is another.
    """
    for name in sorted(live.keys() ^ tensors.keys()):
        where = "model" if name in live else "weights"
        raise UserError(f"the weights do not fit the model: {name} is only in the {where}")
    for name, tensor in live.items():
        own = (rows or {}).get(name)
        here, there = own.shape if own else tuple(tensor.shape), tuple(tensors[name].shape)
        if here != there:
            raise UserError(f"the weights do not fit the model: {name} is {here} in the model, {there} in the weights")
        tensor.copy_(tensors[name][own.first : own.first + own.count] if own else tensors[name])
