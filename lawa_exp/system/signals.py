"""SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 ask a training to stop after the step at hand, save, and exit with code 75."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

REQUESTED: list[int] = []  # the signals that came
_work = "step"
_interrupted = 0.0  # when SIGINT came first


def listen(work: str = "step") -> None:
    """From now on the signals are only noted; a second SIGINT, more than a second after the first, ends the process at
    once (torchrun hands on the one that the terminal has sent to its ranks as well). work: after which it stops.
    """
    global _work
    _work = work
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _note)


def end_at_once() -> None:
    """From now on the signals end this process, as Ctrl-C does: other processes do its work."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.default_int_handler)


def stop_requested() -> bool:
    return bool(REQUESTED)


def _note(number: int, frame: FrameType | None) -> None:
    global _interrupted
    if number == signal.SIGINT and signal.SIGINT in REQUESTED:
        if time.monotonic() > _interrupted + 1:
            raise KeyboardInterrupt
    elif number == signal.SIGINT:
        _interrupted = time.monotonic()
    if not REQUESTED:
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this {_work}\n".encode())  # safe in a handler
    REQUESTED.append(number)
