"""How much memory a process takes, and what the allocator does with freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    import torch


NOT_ALLOCATED = ("Storage size calculation overflowed", "can't allocate memory", "out of memory", "Invalid size")


@contextlib.contextmanager
def allocating(what: str) -> Iterator[None]:
    """UserError where `what` does not fit into the memory, or into any."""
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in NOT_ALLOCATED):
            raise
        why = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise UserError(f"{what}: does not fit into the memory ({why[:120]})") from None


def keep_freed_memory() -> None:
    """Freed blocks stay with the process (glibc; elsewhere nothing happens).

    Otherwise a CPU's large tensors are mapped anew at every step, and the kernel clears their pages each time.
    """
    _mallopt(mmap_max=0, trim_threshold=2**31 - 1)


def return_freed_memory() -> None:
    """From now on every large block is mapped by itself, and given back when it is freed.

    For loops whose turns differ: glibc does not use a hole again for an aligned block of the same size, so that with
    many averages the process would grow. Forward passes of small models take a third more CPU time.
    """
    _mallopt(mmap_max=2**16, trim_threshold=2**17, mmap_threshold=2**20)


def _mallopt(**options: int) -> None:
    numbers = {"trim_threshold": -1, "mmap_threshold": -3, "mmap_max": -4}  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for name, value in options.items():
            libc.mallopt(numbers[name], value)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
