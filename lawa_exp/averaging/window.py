"""Snapshots of the live weights: taken once for a step, shared by every averager and file that reads them.

Copies can be made during the next forward and backward pass. `fence` must then come between them and the next change in
place of the parameters; `Window.fence_before` sees to it for an optimizer. Buffers, which a forward pass may change,
are copied at once.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Snapshot:
    """An exact copy of the live weights and buffers after a step; read back from the disk where it was spilled."""

    def __init__(
        self,
        step: int,
        tensors: dict[str, Tensor] | None,
        load: Callable[[], dict[str, Tensor]] | None = None,
        wait: Callable[[], object] | None = None,
    ) -> None:
        """tensors: None where `load` reads them. wait: returns once `tensors`, which are being copied, are complete."""
        self.step = step
        self.on_disk = tensors is None
        self._tensors, self._load, self._wait = tensors, load, wait

    @property
    def arriving(self) -> dict[str, Tensor]:
        """Its tensors in memory, which may still be filled: `tensors` waits for that."""
        assert self._tensors is not None, "it is on the disk"
        return self._tensors

    def wait(self) -> None:
        """Its tensors are complete when this returns."""
        if wait := self._wait:  # other threads may wait for the same copy
            wait()
            self._wait = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        self.wait()
        tensors = self._tensors  # another thread may spill it now
        if tensors is None:
            assert self._load
            return self._load()
        return tensors

    def __reduce__(self) -> tuple[object, ...]:
        return Snapshot, (self.step, self.tensors)

    def spill(self, load: Callable[[], dict[str, Tensor]]) -> None:
        """It is on the disk, from where `load` reads it: the copy in memory goes."""
        self._load, self._tensors, self.on_disk = load, None, True


class Window:
    """The run's snapshots, never changed once taken. Readers say which steps they still need; the others are dropped.

    folder: where the snapshots are written, to be read back when an average is computed (default: they stay in
    memory). The files are the window's own and go with it, so ranks and runs may share the folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.snapshots: dict[int, Snapshot] = {}
        self._folder = folder
        self._disk = None if folder is None else Disk(Path(folder))
        self._needs: list[Callable[[int], Sequence[int]]] = []
        self._copier = Copier()
        self._fenced = False
        self._model: weakref.ref[nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles. All tensors are complete; no optimizer waits for a copied window."""
        self.fence()
        model = self._model and self._model()
        return {"folder": self._folder, "snapshots": self.snapshots, "needs": self._needs, "model": model}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]
        self._needs = state["needs"]
        for snapshot in state["snapshots"].values():
            self.put(snapshot)
        if state["model"] is not None:
            self.bind(state["model"])

    def add_reader(self, needs: Callable[[int], Sequence[int]]) -> None:
        """needs: step -> the steps whose snapshots must stay after it, oldest first."""
        self._needs.append(needs)

    def bind(self, model: nn.Module) -> None:
        """Its snapshots are of `model`. ValueError where they are of another one."""
        bound = self._model and self._model()
        if bound is not None and bound is not model:
            raise ValueError("the window holds snapshots of another model: each model needs a Window of its own")
        self._model = weakref.ref(model)

    def fence_before(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on copies run while other work goes on, and every step of `optimizer` waits for them.

        Whoever else changes the parameters in place calls `fence` before.
        """
        optimizer.register_step_pre_hook(lambda *_: self.fence())
        self._fenced = True

    def fence(self) -> None:
        """The live tensors may be changed in place once this has returned."""
        self._copier.fence()

    def take(self, step: int, tensors: Mapping[str, Tensor], averaged: frozenset[str]) -> Snapshot:
        """The snapshot of `step`, copied now unless it was taken before; what nobody needs any more is dropped.

        averaged: the names of the parameters, which alone may be copied later. Later snapshots stay: a reader that is
        rebuilt takes earlier steps than another already has.
        """
        if step not in self.snapshots:
            self.put(self._copier.copy(step, tensors, averaged))
            if not self._fenced:
                self.fence()
            self._drop_unneeded(step)
        return self.snapshots[step]

    def copied(self, step: int, tensors: Mapping[str, Tensor], later: frozenset[str]) -> Snapshot:
        """A copy of other tensors after `step`, made as those of snapshots are, and not kept here.

        later: the names of those that nothing changes before the next update.
        """
        copy = self._copier.copy(step, tensors, later)
        if not self._fenced:
            self.fence()
        return copy

    def hold(self, snapshot: Snapshot) -> None:
        """Like `take`, of a snapshot whose tensors nobody changes: as it is, without a copy."""
        self.put(snapshot)
        self._drop_unneeded(snapshot.step)

    def _drop_unneeded(self, step: int) -> None:
        kept = {s for needs in self._needs for s in needs(step)} | {step}
        self.drop(lambda s: s < step and s not in kept)

    def put(self, snapshot: Snapshot) -> None:
        """Takes in a snapshot, in place of one of the same step."""
        self.snapshots[snapshot.step] = snapshot
        if self._disk:
            self._disk.write(snapshot)

    def drop(self, which: Callable[[int], bool]) -> None:
        """Forgets the snapshots of the steps for which `which` is true."""
        for step in [s for s in self.snapshots if which(s)]:
            del self.snapshots[step]
            if self._disk:
                self._disk.remove(step)


class Disk:
    """Snapshots in files: written, and removed, in order by a thread of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._own = tempfile.TemporaryDirectory(dir=folder, prefix="window-")  # removed with this object
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def write(self, snapshot: Snapshot) -> None:
        if self._last:
            self._last.result()  # raises what went wrong; bounds the copies in memory to two
        self._last = self._thread.submit(self._spill, snapshot, self._path(snapshot.step))

    def remove(self, step: int) -> None:
        self._thread.submit(self._path(step).unlink, missing_ok=True)

    def _path(self, step: int) -> Path:
        return Path(self._own.name) / f"step_{step:08d}.pt"

    @staticmethod
    def _spill(snapshot: Snapshot, path: Path) -> None:
        partial_path = path.with_suffix(".partial")
        torch.save(snapshot.tensors, partial_path)
        partial_path.replace(path)  # a reader of what was there before keeps it
        # Mapped: an average reads one tensor after the other, and a copy in memory is nobody's but the caller's.
        snapshot.spill(partial(torch.load, path, mmap=True, weights_only=True))


class Copier:
    """Copies to the CPU's memory: by a thread, or from a GPU by a stream of their own into pinned memory."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        self._unfenced: list[Callable[[], object]] = []

    @torch.no_grad()
    def copy(self, step: int, tensors: Mapping[str, Tensor], averaged: frozenset[str]) -> Snapshot:
        sources = {name: t.detach() if name in averaged else t.clone() for name, t in tensors.items()}
        on_gpu = any(t.is_cuda for t in sources.values())
        copies = {n: torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for n, t in sources.items()}
        pairs = [(copies[n], sources[n]) for n in sources]
        if on_gpu:
            self._stream = self._stream or torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for target, source in pairs:
                    target.copy_(source, non_blocking=True)
                    if source.is_cuda:
                        source.record_stream(self._stream)  # its memory is not used anew before the copy is made
                event = torch.cuda.Event()
                event.record()
            self._unfenced.append(lambda: torch.cuda.current_stream().wait_event(event))
            return Snapshot(step, copies, wait=event.synchronize)
        self._thread = self._thread or ThreadPoolExecutor(1)
        copied = self._thread.submit(_copy_all, pairs).result
        self._unfenced.append(copied)
        return Snapshot(step, copies, wait=copied)

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
