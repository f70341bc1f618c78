"""Work shared by forked processes: threads wait for each other, because numpy's short calls take Python's lock."""

from __future__ import annotations

import mmap
import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, NoReturn, TypeVar

from lawa_exp.system.errors import Failed

Claim = Callable[[], int]  # the number of the next piece of work, which is then nobody else's
Tell = Callable[[int], None]  # so many more bytes are done
Result = TypeVar("Result")  # picklable
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # to stop: the parent is asked, and ends the workers


def shared(
    work: Callable[[Claim, Tell], Result], workers: int, progress: Callable[[int], None], every: float
) -> list[Result]:
    """What `work` returns in each of the processes; one alone is this one. The first failure ends all and is raised.

    progress: called with all bytes done so far, after `every` seconds each.
    """
    if workers == 1:
        return [_alone(work, progress, every)]
    parent = os.getpid()
    done = memoryview(mmap.mmap(-1, 8 * workers)).cast("q")
    take, give = os.pipe()  # the next number: one process at a time has it, as it is not in the pipe meanwhile
    os.write(give, bytes(8))

    def claim() -> int:
        if os.getppid() != parent:  # it was killed
            os._exit(1)
        number = int.from_bytes(os.read(take, 8))
        os.write(give, (number + 1).to_bytes(8))
        return number

    def begin(worker: int) -> bytes:
        def tell(more: int) -> None:
            done[worker] += more

        try:
            return _sent(True, work(claim, tell))
        except BaseException as error:
            import traceback

            error.add_note(f"in a worker process:\n{traceback.format_exc()}")  # shown where it is nobody's mistake
            return _sent(False, error)

    living: list[int] = []
    poll = select.poll()  # not `select`, whose numbers end at 1024: all files are open
    received: dict[int, bytearray] = {}  # by the pipe that it comes from
    results: list[Result] = []
    try:
        with deferred():
            for worker in range(workers):
                here, there = os.pipe()
                received[here] = bytearray()
                poll.register(here, select.POLLIN)
                process = os.fork()
                if not process:
                    _answer(there, list(received), begin, worker)
                os.close(there)
                living.append(process)
        while received:
            for ready, _ in poll.poll(every * 1000):
                if data := os.read(ready, 1 << 20):
                    received[ready] += data
                else:
                    answer = received.pop(ready)
                    poll.unregister(ready)
                    os.close(ready)
                    results.append(_opened(answer))
            progress(sum(done))
        return results
    finally:
        for process in living:
            with suppress(ProcessLookupError, ChildProcessError):  # the system waits itself where SIGCHLD is ignored
                if len(results) < workers:
                    os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        for fd in (*received, take, give):
            os.close(fd)


def _answer(fd: int, others: list[int], begin: Callable[[int], bytes], worker: int) -> NoReturn:
    """All that a forked process does: nothing of the parent's (its exit handlers, its output) is done twice.

    others: the ends that the parent reads from; open here too, they would keep this one waiting for a parent that died.
    """
    try:
        for other in others:
            os.close(other)
        answer = memoryview(begin(worker))
        while answer:
            answer = answer[os.write(fd, answer) :]
    finally:
        os._exit(0)


@contextmanager
def deferred() -> Iterator[None]:
    """Signals that ask to stop are answered at the end; a process forked meanwhile leaves them to its parent."""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signalled in came:
            os.kill(os.getpid(), signalled)


def _alone(work: Callable[[Claim, Tell], Result], progress: Callable[[int], None], every: float) -> Result:
    done, shown = 0, time.monotonic()

    def tell(more: int) -> None:
        nonlocal done, shown
        done += more
        if time.monotonic() - shown > every:
            shown = time.monotonic()
            progress(done)

    result = work(count().__next__, tell)
    progress(done)
    return result


def _sent(whole: bool, content: object) -> bytes:
    try:
        return pickle.dumps((whole, content))
    except (pickle.PicklingError, TypeError, AttributeError):
        return pickle.dumps((False, Failed(f"a worker failed: {content!r}")))


def _opened(answer: bytes | bytearray) -> Any:
    """What `work` returned in the worker that sent it."""
    try:
        whole, content = pickle.loads(answer)
    except (EOFError, pickle.UnpicklingError):  # there is nothing, or not all of it
        raise Failed("a worker process was killed: out of memory?") from None
    if not whole:
        raise content
    return content
