"""Snapshots of the live weights: taken once for a step, shared by every averager and file that reads them.

Copies are made beside the next forward and backward pass. `fence` must come between them and the next change in place
of the live weights; `Window.fence_before` sees to it for an optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Snapshot:
    """An exact copy of the live weights and buffers after a step; read back from the disk where it was spilled."""

    def __init__(
        self, step: int, tensors: dict[str, Tensor] | None, load: Callable[[], dict[str, Tensor]] | None = None
    ) -> None:
        self.step = step
        self.on_disk = tensors is None
        self._tensors, self._load = tensors, load
        self._pending: Callable[[], Any] | None = None  # returns once the copy is made

    @property
    def tensors(self) -> dict[str, Tensor]:
        if pending := self._pending:  # other threads may wait for the same copy
            pending()
            self._pending = None
        tensors = self._tensors  # another thread may spill it now
        if tensors is None:
            assert self._load
            return self._load()
        return tensors

    def spill(self, load: Callable[[], dict[str, Tensor]]) -> None:
        """It is on the disk, from where `load` reads it: the copy in memory goes."""
        self._load, self._tensors, self.on_disk = load, None, True


class Window:
    """The run's snapshots. Readers say which steps they still need; the others are dropped."""

    def __init__(self) -> None:
        self.snapshots: dict[int, Snapshot] = {}
        self._needs: list[Callable[[int], Sequence[int]]] = []
        self._copier = Copier()
        self._fenced = False

    def add_reader(self, needs: Callable[[int], Sequence[int]]) -> None:
        """needs: step -> the steps whose snapshots must be held after it, oldest first."""
        self._needs.append(needs)

    def fence_before(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on copies run beside other work, and every step of `optimizer` waits for them."""
        optimizer.register_step_pre_hook(lambda *_: self.fence())
        self._fenced = True

    def fence(self) -> None:
        """The live tensors may be changed in place once this has returned."""
        self._copier.fence()

    def take(self, step: int, tensors: Mapping[str, Tensor]) -> Snapshot:
        """The snapshot of `step`, copied now unless it was taken before; what nobody needs any more is dropped.

        Later snapshots stay: a reader that is rebuilt takes earlier steps than another already holds.
        """
        if step not in self.snapshots:
            self.snapshots[step] = self._copier.copy(step, tensors)
            if not self._fenced:
                self.fence()
            self._drop(step)
        return self.snapshots[step]

    def hold(self, snapshot: Snapshot) -> None:
        """Takes in a snapshot whose tensors nobody changes, as it is; what nobody needs any more is dropped."""
        self.snapshots[snapshot.step] = snapshot
        self._drop(snapshot.step)

    def _drop(self, step: int) -> None:
        kept = {s for needs in self._needs for s in needs(step)} | {step}
        self.snapshots = {s: snapshot for s, snapshot in self.snapshots.items() if s in kept or s > step}


class Copier:
    """Copies to the CPU's memory: by a thread, or from a GPU by a stream of their own into pinned memory."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._stream: Any = None
        self._unfenced: list[Callable[[], Any]] = []

    @torch.no_grad()
    def copy(self, step: int, tensors: Mapping[str, Tensor]) -> Snapshot:
        sources = {name: t.detach() for name, t in tensors.items()}
        on_gpu = any(t.is_cuda for t in sources.values())
        copies = {n: torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for n, t in sources.items()}
        snapshot = Snapshot(step, copies)
        pairs = [(copies[n], sources[n]) for n in sources]
        if on_gpu:
            self._stream = self._stream or torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for target, source in pairs:
                    target.copy_(source, non_blocking=True)
                event = torch.cuda.Event()
                event.record()
            snapshot._pending = event.synchronize
            self._unfenced.append(lambda: torch.cuda.current_stream().wait_event(event))
        else:
            self._thread = self._thread or ThreadPoolExecutor(1)
            snapshot._pending = self._thread.submit(_copy_all, pairs).result
            self._unfenced.append(snapshot._pending)
        return snapshot

    def fence(self) -> None:
        for wait in self._unfenced:
            wait()
        self._unfenced.clear()


def _copy_all(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Byte for byte by numpy, which leaves torch's own threads to the training."""
    for target, source in pairs:
        if source.is_contiguous() and source.numel():
            np.copyto(_bytes(target), _bytes(source))
        else:
            target.copy_(source)


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()
