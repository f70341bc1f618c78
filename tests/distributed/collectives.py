"""What test_collectives.py starts on every rank: `collectives FOLDER UPDATES OVERRIDE...` makes so many updates.

Rank 0 writes FOLDER/collectives.json, with the collectives of each update, [[name, elements of this rank], ...], the
last loss, and which buffers are the same on all ranks; and FOLDER/weights.pt, the whole weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lawa_exp.system.distributed import finish, start


class Counted(TorchDispatchMode):
    """Notes every collective that starts: its name and how many elements this rank has in it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(cls, DTensor) for cls in types):
            return NotImplemented  # what it does with its shards is seen instead
        name = func.overloadpacket.__name__.strip("_")
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in name:
            self.calls.append((name.replace("all_reduce", "allreduce"), sum(t.numel() for t in tensors_in(args[0]))))
        return func(*args, **(kwargs or {}))


def tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def main(folder: str, count: str, *overrides: str) -> None:
    from training import training, updates

    ranks, place = start("cpu"), Path(folder)
    t = training(list(overrides), place, ranks)
    calls: list[list[tuple[str, int]]] = []

    @contextmanager
    def inside(step: int) -> Iterator[None]:
        with Counted() as counted:
            yield
        calls.append(counted.calls)

    loss = float(updates(t, int(count), inside)["loss"])
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in t.model.named_parameters()}
    buffers = dict(t.model.named_buffers())
    of_all = ranks.all_of({name: tensor.numpy().tobytes() for name, tensor in buffers.items()})
    same = {name: len({of_rank[name] for of_rank in of_all}) == 1 for name in buffers}
    if ranks.is_main:
        place.mkdir(parents=True, exist_ok=True)
        (place / "collectives.json").write_text(json.dumps({"calls": calls, "loss": loss, "same": same}))
        torch.save({name: tensor.detach() for name, tensor in whole.items()}, place / "weights.pt")
    finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
