"""Batches on the device, read and copied while the step uses the one before.

A batch is a function of its request, so nothing that is read ahead is a state: what is dropped is read again.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lawa_exp.seams.dataset import Dataset, Parts

AHEAD = 2  # batches that are read while one is used

Batches: TypeAlias = Generator[tuple[Tensor, Tensor], None, None]  # who does not use it up closes it
Arriving: TypeAlias = tuple[tuple[Tensor, ...], torch.cuda.Event | None]  # parts, and when they are there (None: now)


def train_batches(data: Dataset, requests: Iterable[tuple[int, int, int]], device: torch.device) -> Batches:
    """`data.train_batch(seed, first, count)` for each request, in order, on the device."""
    return _batches(data, (functools.partial(data.train_parts, *request) for request in requests), device)


def eval_batches(data: Dataset, split: str, requests: Iterable[np.ndarray], device: torch.device) -> Batches:
    """`data.eval_batch(split, indices)` for each of the requested indices, in order, on the device."""
    return _batches(data, (functools.partial(data.eval_parts, split, indices) for indices in requests), device)


def _batches(data: Dataset, reads: Iterable[Callable[[], Parts]], device: torch.device) -> Batches:
    on_gpu = device.type == "cuda"
    if not (data.workers or (on_gpu and data.in_parts)):
        for read in reads:
            yield data.finished(*to_device(read(), device))
        return
    stream = torch.cuda.Stream(device) if on_gpu else None

    def begin(read: Callable[[], Parts]) -> Arriving:
        """In a thread."""
        parts = read()
        if stream is None:
            return to_device(parts, device), None
        with torch.cuda.stream(stream):
            return to_device(parts, device), stream.record_event()

    threads = ThreadPoolExecutor(AHEAD, "reading")
    begun: deque[Future[Arriving]] = deque()
    try:
        for read in reads:
            begun.append(threads.submit(begin, read))
            if len(begun) > AHEAD:
                yield data.finished(*_arrived(*begun.popleft().result()))
        while begun:
            yield data.finished(*_arrived(*begun.popleft().result()))
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _arrived(parts: tuple[Tensor, ...], event: torch.cuda.Event | None) -> tuple[Tensor, ...]:
    """Their memory is another stream's: the current one waits for the copy, and the memory for the current one."""
    if event is not None:
        current = torch.cuda.current_stream(parts[0].device)
        current.wait_event(event)
        for part in parts:
            part.record_stream(current)
    return parts


def to_device(arrays: Parts, device: torch.device) -> tuple[Tensor, ...]:
    """Arrays of numpy as tensors; on a GPU the host does not wait for the copies."""
    tensors = (torch.from_numpy(a) for a in arrays)
    if device.type == "cuda":
        return tuple(t.pin_memory().to(device, non_blocking=True) for t in tensors)
    return tuple(tensors)
