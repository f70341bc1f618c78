"""One process or several ranks: the same few calls. Device collectives go through the default group (nccl or gloo);
flags and files are agreed over gloo on the CPU, so that no rank waits for a device to agree on them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from lawa_exp.slurm.ranks import join_ranks


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    control: Any = None  # the gloo group

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over the ranks, in place, on the tensor's device."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's values into the tensors of every rank, in place; one message for each dtype."""
        if self.world == 1:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            same = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in same])
            dist.broadcast(flat, src=0)
            for tensor, values in zip(same, flat.split([t.numel() for t in same]), strict=True):
                tensor.copy_(values.view_as(tensor))

    def from_main(self, value: Any) -> Any:
        """Rank 0's value (picklable), everywhere."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(group=self.control)


def start(device_type: str) -> Ranks:
    """Joins the ranks that torchrun or srun started, or is alone."""
    join_ranks()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not dist.is_initialized():
        if device_type == "cuda":
            torch.cuda.set_device(local_rank)
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    control = dist.new_group(backend="gloo")
    return Ranks(dist.get_rank(), world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world)), control)


def finish() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class Agreement:
    """A flag that all ranks see at the same step: asked at each step, answered one step later, without waiting."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.asked: deque[tuple[Tensor, Any]] = deque()

    def now(self, flag: bool) -> bool:
        """Whether any rank raises its flag; waits for the answer."""
        vote = torch.tensor([int(flag)])
        if self.ranks.world > 1:
            dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=self.ranks.control)
        return bool(vote.item())

    def vote(self, flag: bool) -> bool:
        """Gives this rank's flag; returns whether any rank had raised its own one call earlier (alone: now)."""
        if self.ranks.world == 1:
            return flag
        vote = torch.tensor([int(flag)])
        work = dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=self.ranks.control, async_op=True)
        self.asked.append((vote, work))
        if len(self.asked) < 2:
            return False
        earlier, work = self.asked.popleft()
        work.wait()
        return bool(earlier.item())
