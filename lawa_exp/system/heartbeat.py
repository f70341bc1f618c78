"""A sign of life beside a run's lock: a small file that its process renews every few seconds and removes at its end.

A lock cannot be seen from another machine, and to look at it would be to take it. A file that is left behind tells what
a kill or a lost node cannot: that the process is gone, and since when. It is no part of the results.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lawa_exp.system.files import temporary
from lawa_exp.system.machine import this_job

NAME = ".heartbeat"
EVERY = 5.0  # seconds
MISSED = 3 * EVERY  # after which a process that this machine does not have is gone
LOST = 60.0  # after which any is: file systems show a change of another machine seconds later


class Heartbeat:
    """Written by a thread, so that a long evaluation is alive and a slow disk holds up nobody but the thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: Callable[[], dict[str, Any]] = dict  # what the training tells, see `Progress.facts`

    @contextmanager
    def beating(self) -> Iterator[None]:
        """The file is there, and renewed, until this ends."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(EVERY):
                self.write()

        self.write()
        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def write(self) -> None:
        """Renews the file; facts that cannot be told, and a disk that is full or away, are no reason to stop."""
        who = {"time": time.time(), "host": platform.node(), "process": os.getpid(), "job": this_job()[0]}
        partial = temporary(self.path)
        try:
            content = json.dumps({**who, **self.facts()})
        except Exception:  # whatever it is, the process lives
            content = json.dumps(who)
        with suppress(OSError):
            partial.write_text(content)
            partial.replace(self.path)  # unsynced: nobody reads it after a crash of the machine


def read(path: Path) -> dict[str, Any] | None:
    """What the file says; None where there is none, or it cannot be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("time"), int | float) else None


def is_alive(beat: dict[str, Any], now: float) -> bool:
    """Whether the process that wrote it lives, as far as its file tells (and the processes of the same machine).

    now: unix time; the clocks of the machines are taken to agree within seconds.
    """
    silent = now - beat["time"]
    if silent <= MISSED:
        return True
    here = beat.get("host") == platform.node()
    return silent <= LOST and not (here and not Path(f"/proc/{beat.get('process')}").exists())
