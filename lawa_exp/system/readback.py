"""Numbers that come back from the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

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
