"""A sign of life next to a run's lock: a small file that its process renews every few seconds and removes at its end.

A lock cannot be seen from another machine, and to look at it would be to take it. A file that is left behind tells what
a kill or a lost node cannot: that the process is gone, and since when. It is no part of the results.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict, cast

from lawa_exp.system.errors import InUse
from lawa_exp.system.files import read_small, temporary
from lawa_exp.system.machine import this_job
from lawa_exp.system.seal import sealed, unsealed

NAME = ".heartbeat"
EVERY = 5.0  # seconds
WAIT = 0.5  # seconds, to look again
MISSED = 3 * EVERY  # after which a process that this machine does not have is gone
LOST = 60.0  # after which any is: file systems show a change of another machine seconds later


TRAINING = {"step", "steps", "stepped", "tokens_per_second", "seconds_left", "unit"}  # of a training, all or none


class Beat(TypedDict, total=False):
    """What the file says: of the process always, and from `step` on of its training, once there is one.

    time and stepped (the last step): unix seconds. job: of SLURM. unit: of tokens_per_second. See `Progress.facts`.
    """

    time: float
    host: str
    process: int
    job: str | None
    step: int
    steps: int
    stepped: float
    tokens_per_second: float | None
    seconds_left: float | None
    unit: str


class Heartbeat:
    """Written by a thread, so that a long evaluation is alive and a slow disk holds up nobody but the thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: Callable[[], Mapping[str, object]] = dict  # what the training tells, see `Progress.facts`

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
        """Renews the file; facts that cannot be had, and a disk that is full or away, are no reason to stop."""
        who = {"time": time.time(), "host": platform.node(), "process": os.getpid(), "job": this_job()[0]}
        partial = temporary(self.path)
        try:
            content = json.dumps(sealed({**who, **self.facts()}))
        except Exception:  # whatever it is, the process lives
            content = json.dumps(sealed(who))
        with suppress(OSError):
            partial.write_text(content)
            partial.replace(self.path)  # unsynced: nobody reads it after a crash of the machine


def read(path: Path) -> Beat | None:
    """What the file says; None where there is none, or it cannot be read."""
    try:
        content = unsealed(read_small(path, 1 << 20))
    except (OSError, ValueError):
        return None
    known = isinstance(content.get("time"), int | float) and {"host", "process", "job"} <= content.keys()
    whole = "step" not in content or content.keys() >= TRAINING
    return cast(Beat, content) if known and whole else None


def wait_for_other_machines(path: Path, what: str) -> None:
    """For who has just got the lock of this folder: where locks are local to a machine, others hold theirs too.

    Returns when no other machine's process is alive: at once, or up to `LOST` seconds after one was killed.
    InUse: it lives. what: `key=value` of the folder, for the message.
    """
    first = beat = read(path)
    while beat and beat["host"] != platform.node() and is_alive(beat, time.time()):
        holder = f"process {beat['process']} on {beat['host']}"
        if first is None or beat["time"] != first["time"]:
            raise InUse(f"{what} is in use by {holder}; wait for it, or choose another folder")
        if beat is first:
            print(f"waiting up to {LOST:.0f} s: {holder} had {what} in use a moment ago", file=sys.stderr, flush=True)
        time.sleep(WAIT)
        beat = read(path)


def is_alive(beat: Beat, now: float) -> bool:
    """Whether the process that wrote it lives, as far as its file tells (and the processes of the same machine).

    now: unix time; the clocks of the machines are taken to agree within seconds.
    """
    silent = now - beat["time"]
    if silent < -LOST:  # a clock that is wrong: it may be long gone
        return False
    if silent <= MISSED:
        return True
    here = beat.get("host") == platform.node()
    return silent <= LOST and not (here and not Path(f"/proc/{beat.get('process')}").exists())
