"""Work on images done by processes of their own: threads wait for each other, because Python has one lock.

A process knows nothing but its jobs, each a function and its arguments, and what it finds is a function of these alone:
how many processes there are, and which of them does what, changes nothing. A job comes by standard input, its pixels go
back through memory that both map, word of it by standard output. The end of standard input, for whatever reason, is its
end.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from lawa_exp.system.errors import Failed

CHUNK = 8  # images in a job: little enough that processes end together, enough that a job is much more than its word
PROGRAM = f"import {__name__} as decoding; decoding.main()"
IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # they are for the training, which ends its processes

Function = Callable[..., np.ndarray]  # of a module: uint8 of a given shape from arguments that can be pickled


class Decoders:
    """`count` processes, started when this is made; they end with it, and with this process."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        """shape: of one image."""
        self.shape = shape
        self.processes = [Decoder(CHUNK * int(np.prod(shape))) for _ in range(count)]
        self.idle: SimpleQueue[Decoder] = SimpleQueue()
        for process in self.processes:
            self.idle.put(process)
        self.threads = ThreadPoolExecutor(count, "decoding")
        weakref.finalize(self, _end, self.processes, self.threads)

    def map(self, function: Function, arguments: Sequence[tuple[object, ...]]) -> np.ndarray:
        """function(*a) for each a of `arguments`: uint8 [len(arguments), *shape]. May be called by several threads.

        Failed, as it was raised there, or where a process was killed.
        """
        images = np.empty((len(arguments), *self.shape), np.uint8)

        def work(first: int) -> None:
            process = self.idle.get()
            try:
                process.work(function, arguments[first : first + CHUNK], images[first : first + CHUNK])
            finally:
                self.idle.put(process)

        for job in [self.threads.submit(work, first) for first in range(0, len(arguments), CHUNK)]:
            job.result()
        return images


class Decoder:
    """One process, for one thread at a time. size: bytes of the memory shared with it."""

    def __init__(self, size: int) -> None:
        package = str(Path(__file__).parents[3])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        fd = _shared(size)
        try:
            self.memory = np.frombuffer(mmap.mmap(fd, size), np.uint8)
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(fd), str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(fd,),
                env={**os.environ, "PYTHONPATH": path, **threads},
                start_new_session=True,  # what a terminal sends is for the training
            )
        finally:
            os.close(fd)

    def work(self, function: Function, arguments: Sequence[tuple[object, ...]], out: np.ndarray) -> None:
        assert self.process.stdin and self.process.stdout
        try:
            pickle.dump((function, list(arguments)), self.process.stdin)
            self.process.stdin.flush()
            problem = pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            code = self.process.wait()
            raise Failed(
                f"a process that decodes images was killed (exit code {code}): out of memory? Fewer trainer.workers "
                "need less"
            ) from None
        if problem:
            raise Failed(problem)
        out.reshape(-1)[:] = self.memory[: out.size]


def _shared(size: int) -> int:
    """A file of `size` bytes without a name, in memory where the system has that: not in /dev/shm, often small."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("decoded")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, size)
    return fd


def _end(processes: list[Decoder], threads: ThreadPoolExecutor) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    for decoder in processes:
        decoder.process.kill()  # it has nothing to lose
    for decoder in processes:
        decoder.process.wait()


def main() -> None:
    """All that the process does; its arguments: the file of the shared memory, and the bytes in it."""
    try:
        _serve(*map(int, sys.argv[1:]))
    except BrokenPipeError:
        os._exit(1)  # nobody is there to be told


def _serve(fd: int, size: int) -> None:
    for name in IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    memory = np.frombuffer(mmap.mmap(fd, size), np.uint8)
    while True:
        try:
            function, arguments = pickle.load(jobs)
        except EOFError:
            return
        problem = None
        try:
            filled = 0
            for of_image in arguments:
                image = function(*of_image).reshape(-1)
                memory[filled : filled + image.size] = image
                filled += image.size
        except Failed as error:
            problem = str(error)
        except Exception:
            problem = f"a process that decodes images failed:\n{traceback.format_exc()}"
        pickle.dump(problem, answers)
        answers.flush()
