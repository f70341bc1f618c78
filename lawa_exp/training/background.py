"""What goes on during training: numbers that come back from the device, files that are written."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVarTuple

import torch
from torch import Tensor

from lawa_exp.averaging.window import Snapshot
from lawa_exp.storage.commit import remove, step_name, steps_in
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.store import Store
from lawa_exp.training.state import Staged

Ts = TypeVarTuple("Ts")
LAG = {"cuda": 2}  # steps that the host runs ahead of a device before it reads the loss


class Readback:
    """Numbers from the device, read some steps later so that the host does not wait for the step it has just queued.

    On a CPU they are there at once. On a GPU always the same number of steps late: rows do not depend on timing.
    """

    def __init__(self, device: torch.device) -> None:
        self.lag = LAG.get(device.type, 0)
        self.waiting: deque[tuple[int, float, Sequence[str], Tensor, torch.cuda.Event | None]] = deque()

    def push(self, step: int, rate: float, names: Sequence[str], values: Tensor) -> None:
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((step, rate, names, values, event))

    def ready(self, lag: int | None = None) -> Iterator[tuple[int, float, dict[str, float]]]:
        while len(self.waiting) > (self.lag if lag is None else lag):
            step, rate, names, values, event = self.waiting.popleft()
            if event:
                event.synchronize()
            yield step, rate, dict(zip(names, values.tolist(), strict=True))

    def rest(self) -> Iterator[tuple[int, float, dict[str, float]]]:
        return self.ready(lag=0)


class Background:
    """Files written in order by one thread while training goes on; an error there is raised at the next call."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.pending: deque[Future[None]] = deque()

    def submit(self, function: Callable[[*Ts], None], *args: *Ts) -> Future[None]:
        while self.pending and (self.pending[0].done() or len(self.pending) > 8):  # bounds the copies held
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(function, *args))
        return self.pending[-1]

    def drain(self) -> None:
        while self.pending:
            self.pending.popleft().result()

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


def write_snapshot(store: Store, root: Path, snapshot: Snapshot, keep: int | str) -> None:
    """Commits a snapshot and, if only the latest `keep` are kept, removes those before them."""
    store.commit(root / step_name(snapshot.step), {"model": snapshot.tensors})
    if isinstance(keep, int) and store.ranks.is_main:
        for earlier in [s for s in steps_in(root) if s <= snapshot.step][:-keep]:
            remove(root / step_name(earlier))


def write_state(store: Store, staged: Staged, roots: Sequence[Path], run: RunDir) -> None:
    """Commits a complete state in each of `roots`; then the old ones go."""
    for root in roots:
        staged.commit(store, root)
    if store.ranks.is_main:
        run.remove_old_states(staged.step)


def spill(store: Store, snapshot: Snapshot, root: Path) -> None:
    """Drops the copy in memory of a snapshot that is in the trajectory `root` (or will be, before it is read)."""
    snapshot.spill(functools.partial(store.read, root / step_name(snapshot.step)))


def write_average(store: Store, root: Path, step: int, tensors: dict[str, Tensor], keep_all: bool) -> None:
    """Commits an average; removes those of later steps (the run went back) and, unless `keep_all`, of earlier ones."""
    store.commit(root / step_name(step), {"model": tensors})
    for other in steps_in(root) if store.ranks.is_main else ():
        if other > step or (other < step and not keep_all):
            remove(root / step_name(other))
