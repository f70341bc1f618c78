"""How the ranks share a model: each holds all of it (ddp), or some rows of every tensor (fsdp)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.checkpoint import checkpoint, noop_context_fn

from lawa_exp.averaging.tensors import is_sharded, named_tensors
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.dataset.loading import eval_batches
from lawa_exp.axes.objective.settings import ObjectiveSettings
from lawa_exp.evaluation.evaluate import evaluating
from lawa_exp.evaluation.numerics import Autocast, layered_model
from lawa_exp.seams.callback import Callback
from lawa_exp.seams.dataset import Dataset
from lawa_exp.seams.layers import keeping_statistics, statistics_kept
from lawa_exp.seams.noise import first_row
from lawa_exp.seams.objective import Objective
from lawa_exp.storage.store import Rows
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError

Passes = tuple[AbstractContextManager[None], AbstractContextManager[None]]  # contexts of the first and the second pass


def units(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, in which it is gathered and recomputed: what its outermost lists of modules hold.

    Empty for a model without any: then it is one unit.
    """
    found: list[nn.Module] = []
    for module in model.children():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            found += [m for m in module if next(m.parameters(), None) is not None]
        else:
            found += units(module)
    return found


def checkpoint_activations(model: nn.Module) -> None:
    """Each unit keeps its inputs alone and is computed again in the backward pass: the same numbers, less memory."""
    for unit in units(model) or [model]:
        passes = functools.partial(_passes, unit) if any(keeping_statistics(unit)) else noop_context_fn
        unit.forward = functools.partial(_recomputed, unit.forward, passes)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., object], passes: Callable[[], Passes], *inputs: object, **named: Any) -> object:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=passes, **named)


def _passes(unit: nn.Module) -> Passes:
    """The contexts of the first pass and of the second, which begins with the same statistics and counts no batch."""
    before: list[tuple[nn.Module, dict[str, Tensor]]] = []

    @contextlib.contextmanager
    def first() -> Iterator[None]:
        for _, module, _ in keeping_statistics(unit):
            before.append((module, {name: t.clone() for name, t in module._buffers.items() if t is not None}))
        yield

    @contextlib.contextmanager
    def second() -> Iterator[None]:
        with statistics_kept(unit):
            kept = [(module, dict(module._buffers)) for module, _ in before]
            for module, buffers in before:
                module._buffers.update(buffers)
            try:
                yield
            finally:
                for module, own in kept:
                    module._buffers.update(own)

    return first(), second()


def replicate(
    objective: nn.Module, settings: ObjectiveSettings, data: Dataset, device: torch.device, autocast: Autocast
) -> nn.Module:
    """Each rank holds the model; gradients are averaged over the ranks during the last backward pass."""
    trained = nn.parallel.DistributedDataParallel(
        objective,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # `TrainingStatistics` does
        find_unused_parameters=settings.skips,
    )
    settle_buckets(trained, settings.group, data, device, autocast)
    return trained


def settle_buckets(trained: nn.Module, samples: int, data: Dataset, device: torch.device, autocast: Autocast) -> None:
    """Two passes of so many samples that train nothing.

    DDP rebuilds its buckets after a process's first backward pass, and on three ranks or more another bucket order is
    another order of summation. So a resumed run's first step sums as its twin's did.
    """
    with evaluating(trained):
        for inputs, targets in eval_batches(data, "val", [np.zeros(samples, np.int64)] * 2, device):
            with autocast():
                terms = list(trained(inputs, targets).values())
            sum(terms[1:], terms[0]).backward()
    trained.zero_grad(set_to_none=True)


@contextlib.contextmanager
def gathering(trained: nn.Module, last: bool) -> Iterator[None]:
    """A forward and backward pass of `trained`: gradients meet over the ranks in the `last` one of a step."""
    if isinstance(trained, nn.parallel.DistributedDataParallel):
        with contextlib.nullcontext() if last else trained.no_sync():
            yield
        return
    for part in sharded_roots(trained):
        part.set_requires_gradient_sync(last)  # type: ignore[operator]
    yield


def sharded_roots(objective: nn.Module) -> list[nn.Module]:
    """The outermost modules that FSDP2 shards."""
    if hasattr(objective, "set_requires_gradient_sync"):
        return [objective]
    return [part for child in objective.children() for part in sharded_roots(child)]


def whole(norm: Tensor) -> Tensor:
    """A norm of all gradients, of those of all ranks where they are sharded."""
    return norm.full_tensor() if is_sharded(norm) else norm


def shard(objective: Objective, config: Config, ranks: Ranks, device: torch.device) -> None:
    """FSDP2, in place: each unit and the rest are gathered when they are needed, and dropped after it.

    With bfloat16 they are gathered, and computed with, in bfloat16; gradients are summed over the ranks in float32, and
    the weights and the optimizer's state are float32. One unit after another comes from rank 0, and its rows stay.
    UserError: the objective has parameters of its own that are in no module, or that are the model's too.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    low = torch.bfloat16 if config.trainer.dtype == "bfloat16" else None
    precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (ranks.world,))
    model = objective.model
    of_model = {id(p) for p in model.parameters()}
    own = {name: child for name, child in objective.named_children() if child is not model}
    if any(id(p) in of_model for child in own.values() for p in child.parameters()):
        raise UserError("objective: it shares parameters with the model: not with trainer=fsdp; choose trainer=ddp")
    trained = [child for child in own.values() if next(child.parameters(), None) is not None]
    if trained and (config.objective.phases > 1 or config.objective.skips):
        raise UserError(
            "objective: it has modules of its own that a pass may leave out: not with trainer=fsdp; choose trainer=ddp"
        )
    if next(objective.parameters(recurse=False), None) is not None:
        raise UserError("objective: it has parameters outside of modules: not with trainer=fsdp; choose trainer=ddp")
    for unit in units(model):
        hand_out(unit, device)
        if config.trainer.compile:
            unit.compile(dynamic=False)
        fully_shard(unit, mesh=mesh, mp_policy=precision)
    for root in (model, *trained):
        hand_out(root, device)
        fully_shard(root, mesh=mesh, mp_policy=precision)
    hand_out(objective, device)


def first_model(config: Config, kind: str, ranks: Ranks, device: torch.device) -> tuple[nn.Module, dict[int, Callback]]:
    """The model with its first weights, and what its layers need in training, by place. kind: see `sharing`.

    Of a model that is to be sharded: on rank 0's CPU alone, elsewhere without memory (but for a model from outside).
    """
    if kind != "fsdp":
        return layered_model(config, device)
    with torch.device("cpu" if ranks.is_main or config.model.outside else "meta") as place:
        return layered_model(config, place)


@torch.no_grad()
def hand_out(module: nn.Module, device: torch.device) -> None:
    """Puts what is not sharded yet of `module` on the device, rank 0's on every rank; tied tensors stay tied."""
    moved: dict[int, tuple[Tensor, Any]] = {}  # by the id of the old one, which stays alive for it
    for part in module.modules():
        own: dict[str, Any]
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is None or is_sharded(tensor):
                    continue
                if id(tensor) not in moved:
                    new = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
                    new = new.contiguous()
                    dist.broadcast(new, src=0)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    moved[id(tensor)] = tensor, nn.Parameter(new, tensor.requires_grad) if is_parameter else new
                own[name] = moved[id(tensor)][1]


def rows_of(objective: Objective) -> dict[str, Rows]:
    """What this rank holds of each sharded tensor of the model, and of the objective; empty where all are whole."""
    rows = {}
    for name, tensor in {**named_tensors(objective.model), **objective.own()}.items():
        if not is_sharded(tensor):
            continue
        assert [p.is_shard(0) for p in tensor.placements] == [True], name
        rows[name] = Rows(tuple(tensor.shape), first_row(tensor), tensor.to_local().shape[0])
    return rows
