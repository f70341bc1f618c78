"""An optimizer's state by the names of its parameters, of a sharded model this rank's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lawa_exp.averaging.tensors import is_sharded, local_part, reshard, unwrapped_name
from lawa_exp.seams.callback import Saved
from lawa_exp.storage.store import Store

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MODEL = "model."  # before the names that an objective has its model's parameters under


class SavedOptimizer:
    """Its tensors as `<parameter>/<entry>`, and what its groups hold besides parameters.

    objective: whose parameters it updates; those of its model go by the model's names.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, objective: nn.Module, store: Store) -> None:
        self.optimizer, self.objective, self.store = optimizer, objective, store

    def state(self) -> Saved:
        reshard(self.objective)
        names = {id(p): n for n, p in self._parameters().items()}
        tensors = {}
        parameter: Any
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                name = names[id(parameter)]
                if is_sharded(value):
                    rows = self.store.rows.get(unwrapped_name(name))
                    as_parameter = rows is not None and tuple(value.shape) == rows.shape
                    assert as_parameter and value.placements == parameter.placements, f"{name}/{key}"
                    value = value.to_local()
                tensors[f"{name}/{key}"] = value
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        return tensors, {"groups": groups}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        reshard(self.objective)
        order = {id(p): i for i, p in enumerate(p for g in self.optimizer.param_groups for p in g["params"])}
        parameters = {n: p for n, p in self._parameters().items() if id(p) in order}
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, entry = key.rpartition("/")
            parameter: Any = parameters[name]
            if is_sharded(parameter) and tensor.shape == parameter.to_local().shape:
                tensor = _like(parameter, tensor)
            state.setdefault(order[id(parameter)], {})[entry] = tensor
        described = self.optimizer.state_dict()
        described["state"] = state
        described["param_groups"] = [
            saved | {"params": group["params"]}
            for saved, group in zip(scalars["groups"], described["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict(described)

    def _parameters(self) -> dict[str, nn.Parameter]:
        named = self.objective.named_parameters()
        return {n.removeprefix(MODEL) if n.startswith(MODEL) else f"objective.{n}": p for n, p in named}


def _like(parameter: DTensor, rows: Tensor) -> Tensor:
    """This rank's rows as a tensor that is distributed as `parameter` is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        rows.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
        run_check=False,
    )


def take_step(optimizer: torch.optim.Optimizer, rate: float, diverged: Tensor, with_state: bool) -> None:
    """The optimizer's step at this rate; gradients are dropped. Nothing here waits for the device.

    diverged: on the device; where it is true, no weight changes, on a GPU up to the moment when the host knows.
    with_state: nor does a tensor of the optimizer's state, from which weights are computed.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_ratio", 1.0)
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = diverged.float()  # type: ignore[attr-defined]
        optimizer.step()
    else:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for gradient in (p.grad for p in parameters if p.grad is not None):
            local_part(gradient).masked_fill_(diverged, 0.0)
        state = [of for entries in optimizer.state.values() for of in entries.values()] if with_state else []
        tensors = [local_part(of.detach()) for of in (*parameters, *state) if isinstance(of, Tensor)]
        tensors = [tensor for tensor in tensors if tensor.device == diverged.device]
        kept = [tensor.clone() for tensor in tensors]
        optimizer.step()
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(torch.where(diverged, before, tensor))
    optimizer.zero_grad(set_to_none=True)
