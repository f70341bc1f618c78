"""One process or several ranks: the same few calls. Device collectives go through the default group (nccl or gloo);
flags and files are agreed over gloo on the CPU, so that no rank waits for a device to agree on them."""

from __future__ import annotations

import os
import re
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from lawa_exp.system import environment
from lawa_exp.system.errors import Failed, UserError

T = TypeVar("T")
LOST = re.compile(  # gloo names the place in its source
    r"\[(enforce fail at )?\S*\bgloo/\S+:\d+\]|\bNCCL ([Ee]rror|timeout|communicator|operations|watchdog)\b"
)


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    control: dist.ProcessGroup | None = None  # of gloo
    files: dist.ProcessGroup | None = None  # another, for what is written beside training

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

    def from_main(self, value: T) -> T:
        """Rank 0's value (picklable), everywhere."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def all_of(self, value: T) -> list[T]:
        """Every rank's value (picklable), everywhere."""
        if self.control is None:  # alone, or planned only
            return [value]
        values: list[Any] = [None] * self.world  # each is replaced
        dist.all_gather_object(values, value, group=self.control)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns here; a UserError of one rank is raised on every rank, and says which it was."""
        result, mistake = None, None
        try:
            result = work()
        except UserError as error:
            mistake = str(error)
        for rank, message in enumerate(self.all_of(mistake)):
            if message is not None:
                raise UserError(message if rank == 0 else f"on rank {rank}: {message}")
        return result  # type: ignore[return-value]

    def agreed(self, work: Callable[[], T]) -> list[T]:
        """What `work` returned on every rank, on rank 0 (elsewhere nothing of use); an error of one is raised on each.

        Of the group of files: one thread at a time, in one order on all ranks.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        if self.world == 1:
            if error:
                raise error
            return [result]  # type: ignore[list-item]
        sent = error if isinstance(error, OSError) or error is None else f"{type(error).__name__}: {error}"
        errors: list[OSError | str | None] = [None] * self.world
        dist.all_gather_object(errors, sent, group=self.files)
        if error:
            raise error
        for rank, other in enumerate(errors):
            if other is not None:
                raise other if isinstance(other, OSError) else Failed(f"on rank {rank}: {other}")
        results: list[Any] = [None] * self.world
        dist.gather_object(result, results if self.is_main else None, group=self.files)
        return results

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(group=self.control)


def start(device_type: str) -> Ranks:
    """Joins the ranks that torchrun or srun started, or is alone."""
    _, world, local_rank, local_world = environment.ranks()
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        if device_type == "cuda":
            torch.cuda.set_device(own_gpu(local_rank))
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    control, files = _of_gloo(), _of_gloo()
    return Ranks(dist.get_rank(), world, local_rank, local_world, control, files)


def _of_gloo() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every rank is in it
    return group


def own_gpu(local_rank: int) -> int:
    """The number of this rank's GPU among those that it sees; where SLURM shows each task one alone, that one."""
    return local_rank if torch.cuda.device_count() > 1 else 0


def finish() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def lost(error: Exception) -> str | None:
    """What to say of an error that another rank's end brought about; None for an error of this rank's own."""
    said = str(error)
    if isinstance(error, dist.DistError) or (type(error) is RuntimeError and LOST.search(said)):
        return f"another rank has ended ({said.splitlines()[0]}); the same command goes on from the last save"
    return None


def report(error: Exception, ranks: Ranks) -> None:
    """Tells an error at once, on stderr and in torchrun's summary, before the other ranks fail for want of this one."""
    lines = "".join(traceback.format_exception(error))
    os.write(2, f"error on rank {ranks.rank}: {type(error).__name__}: {error}\n{lines}".encode())
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


class Agreement:
    """A flag that all ranks see at the same step: sent at each step, received one step later, without waiting."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.votes: deque[tuple[Tensor, dist.Work]] = deque()

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
        self.votes.append((vote, work))
        if len(self.votes) < 2:
            return False
        earlier, work = self.votes.popleft()
        work.wait()
        return bool(earlier.item())


def start_device(name: str, plan: bool = False) -> tuple[torch.device, Ranks]:
    """The device (`auto`: a GPU if there is one) and the ranks. UserError where there is no such device.

    plan: nothing is started, and the device, as WORLD_SIZE ranks, may be another machine's.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UserError(f"trainer.device={name}: expected auto, cpu or cuda")
    if plan and "RANK" not in os.environ:
        world = environment.number("WORLD_SIZE", 1, 1)
        return device, Ranks(0, world, 0, environment.number("LOCAL_WORLD_SIZE", world, 1))
    if device.type == "cuda" and not torch.cuda.is_available():
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ and os.environ["CUDA_VISIBLE_DEVICES"]
        why = "" if hidden is False else f" (CUDA_VISIBLE_DEVICES={hidden})"
        raise UserError(f"trainer.device={name}: this machine has no CUDA device{why}; use trainer.device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"trainer.device={name}: of {torch.cuda.device_count()} CUDA devices; the first is cuda:0")
    ranks = start(device.type)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", own_gpu(ranks.local_rank))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams and events are of the current device
    return device, ranks


@contextmanager
def on_main(ranks: Ranks, context: AbstractContextManager[None]) -> Iterator[None]:
    """Enters `context` on rank 0; a UserError there is raised on every rank."""
    with ExitStack() as stack:
        error = None
        try:
            if ranks.is_main:
                stack.enter_context(context)
        except UserError as raised:
            error = raised
        error = ranks.from_main(error)
        if error:
            raise error
        yield
