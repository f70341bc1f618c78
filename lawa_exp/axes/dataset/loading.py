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

from lawa_exp.seams.dataset import Arrays, Dataset, Inputs, Parts
from lawa_exp.seams.samples import Samples

AHEAD = 2  # batches that are read while one is used
FINISHED = np.zeros(())  # the first of parts whose others are the batch already

Batches: TypeAlias = Generator[tuple[Inputs, Tensor], None, None]  # who does not use it up closes it
Arrived: TypeAlias = tuple[Inputs, *tuple[Tensor, ...]]  # parts, on the device
Arriving: TypeAlias = tuple[Arrived, torch.cuda.Event | None]  # and when they are there (None: now)


def train_batches(data: Dataset, seed: int, requests: Iterable[Samples], device: torch.device) -> Batches:
    """`data.train_batch(seed, samples)`, or its noise, for each of the requested samples, in order, on the device."""
    return _batches(data, (functools.partial(_train_parts, data, seed, samples) for samples in requests), device)


def _train_parts(data: Dataset, seed: int, samples: Samples) -> Parts:
    if not samples.noise:
        return data.train_parts(seed, samples)
    return (FINISHED, *data.noise_batch(seed, samples))  # type: ignore[return-value]


def _finished(data: Dataset, parts: Arrived) -> tuple[Inputs, Tensor]:
    first, *others = parts
    if isinstance(first, Tensor) and first.ndim == 0:
        inputs, targets = others
        return inputs, targets
    return data.finished(*parts)


def eval_batches(data: Dataset, split: str, requests: Iterable[np.ndarray], device: torch.device) -> Batches:
    """`data.eval_batch(split, indices)` for each of the requested indices, in order, on the device."""
    return _batches(data, (functools.partial(data.eval_parts, split, indices) for indices in requests), device)


def _batches(data: Dataset, reads: Iterable[Callable[[], Parts]], device: torch.device) -> Batches:
    on_gpu = device.type == "cuda"
    if not (data.workers or (on_gpu and data.in_parts)):
        for read in reads:
            yield _finished(data, to_device(read(), device))
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
                yield _finished(data, _arrived(*begun.popleft().result()))
        while begun:
            yield _finished(data, _arrived(*begun.popleft().result()))
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _arrived(parts: Arrived, event: torch.cuda.Event | None) -> Arrived:
    """Their memory is another stream's: the current one waits for the copy, and the memory for the current one."""
    if event is not None:
        current = torch.cuda.current_stream()
        current.wait_event(event)
        for part in parts:
            for tensor in part.values() if isinstance(part, dict) else (part,):
                tensor.record_stream(current)
    return parts


def to_device(arrays: Parts, device: torch.device) -> Arrived:
    """Arrays of numpy as tensors; on a GPU the host does not wait for the copies."""

    def moved(array: Arrays) -> Inputs:
        if isinstance(array, dict):
            return {name: moved(part) for name, part in array.items()}  # type: ignore[misc]
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    return tuple(map(moved, arrays))  # type: ignore[return-value]
