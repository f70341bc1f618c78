"""Files that are written while training goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVarTuple

Ts = TypeVarTuple("Ts")


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
