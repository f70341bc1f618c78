"""Batches on the device, read and copied beside the step that uses the one before.

A batch is asked for by what it is, so nothing that is read ahead is a state: what is dropped is read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

AHEAD = 2  # batches in the making while one is used

Batch = tuple[Tensor, Tensor]  # inputs and targets
Batches = Generator[Batch, None, None]  # closed by who does not use it up


def train_batches(data: Any, asked: Iterable[tuple[int, int, int]], device: torch.device) -> Batches:
    """`data.train_batch(seed, first, count)` for each that is asked for, in order, on the device."""
    return _batches(data, getattr(data, "train_parts", data.train_batch), asked, device)


def eval_batches(data: Any, split: str, asked: Iterable[Any], device: torch.device) -> Batches:
    """`data.eval_batch(split, indices)` for each of the indices that are asked for, in order, on the device."""
    read = getattr(data, "eval_parts", data.eval_batch)
    return _batches(data, read, ((split, indices) for indices in asked), device)


def _batches(
    data: Any, read: Callable[..., tuple[Any, ...]], asked: Iterable[tuple[Any, ...]], device: torch.device
) -> Batches:
    finished = getattr(data, "finished", _as_they_are)
    on_gpu = device.type == "cuda"
    workers = getattr(data, "workers", None)  # None: of a data set that is in memory
    if not (workers or (on_gpu and finished is not _as_they_are)):
        for request in asked:
            yield finished(*to_device(read(*request), device))
        return
    stream = torch.cuda.Stream(device) if on_gpu else None

    def begin(request: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], Any]:
        """In a thread: the parts on the device, or on their way, and the event of their arrival."""
        parts = read(*request)
        if stream is None:
            return to_device(parts, device), None
        with torch.cuda.stream(stream):
            return to_device(parts, device), stream.record_event()

    threads = ThreadPoolExecutor(AHEAD, "reading")
    begun: deque[Future] = deque()
    try:
        for request in asked:
            begun.append(threads.submit(begin, request))
            if len(begun) > AHEAD:
                yield finished(*_arrived(*begun.popleft().result()))
        while begun:
            yield finished(*_arrived(*begun.popleft().result()))
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _as_they_are(inputs: Tensor, targets: Tensor) -> Batch:
    return inputs, targets


def _arrived(parts: tuple[Tensor, ...], event: Any) -> tuple[Tensor, ...]:
    """Their memory is another stream's: it waits for the copy, and the memory for it."""
    if event is not None:
        here = torch.cuda.current_stream(parts[0].device)
        here.wait_event(event)
        for part in parts:
            part.record_stream(here)
    return parts


def to_device(arrays: tuple[Any, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Arrays of numpy as tensors; on a GPU the host does not wait for the copies."""
    tensors = (torch.from_numpy(a) for a in arrays)
    if device.type == "cuda":
        return tuple(t.pin_memory().to(device, non_blocking=True) for t in tensors)
    return tuple(tensors)
