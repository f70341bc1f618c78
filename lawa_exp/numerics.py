"""The arithmetic that a training and the evaluation of its averages share."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lawa_exp.config import Config
from lawa_exp.models import build_model
from lawa_exp.models.objective import Objective


def set_up_arithmetic(config: Config) -> None:
    """Threads and determinism, both explicit so that an earlier run in this process leaves no trace."""
    torch.set_num_threads(config.trainer.threads or 1)
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32; bfloat16 is a GPU's default
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Freed blocks stay with the process, for a loop whose steps are alike (glibc; elsewhere nothing happens).

    Otherwise a CPU's large tensors are mapped anew at every step, and the kernel clears their pages each time.
    """
    _mallopt(mmap_max=0, mmap_threshold=2**20, trim_threshold=2**31 - 1)


def return_freed_memory() -> None:
    """Every large block is mapped by itself, and given back when it is freed, for work whose parts differ.

    glibc does not use a hole again for an aligned block of the same size, so the heap would grow with every average.
    """
    _mallopt(mmap_max=2**16, mmap_threshold=2**20, trim_threshold=2**17)


def _mallopt(mmap_max: int, mmap_threshold: int, trim_threshold: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in ((-4, mmap_max), (-3, mmap_threshold), (-1, trim_threshold)):  # as malloc.h numbers them
            libc.mallopt(option, value)


def autocast_for(config: Config, device: torch.device) -> Callable[[], Any]:
    """A fresh autocast context at each call; no-op for float32."""
    return functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=config.trainer.dtype == "bfloat16")


def seeded_model(config: Config, device: torch.device) -> nn.Module:
    """The model's first weights: a function of the seed alone, made on the CPU."""
    torch.manual_seed(config.seed)
    return build_model(config.model).to(device)


def objective_for(config: Config, model: nn.Module) -> nn.Module:
    """What is trained and evaluated: the model with its loss, compiled if asked."""
    objective = Objective(model)
    if not config.trainer.compile:
        return objective
    # One graph for each shape: with dynamic shapes the kernels would depend on which batch size came first.
    return torch.compile(objective, dynamic=False)  # type: ignore[return-value]
