"""The arithmetic that a training and the evaluation of its averages share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import torch
from torch import nn

from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.axes.objective.task import Objective
from lawa_exp.config.shared import Trainer
from lawa_exp.system.memory import keep_freed_memory

Autocast: TypeAlias = Callable[[], AbstractContextManager[object]]  # a fresh context at each call


class Setup(Protocol):
    """What decides a model and its arithmetic: a `Config`, or as much of one."""

    @property
    def model(self) -> ModelSettings: ...

    @property
    def seed(self) -> int: ...

    @property
    def trainer(self) -> Trainer: ...


def set_up_arithmetic(config: Setup) -> None:
    """Threads and determinism, both explicit so that an earlier run in this process leaves no trace."""
    torch.set_num_threads(config.trainer.threads)
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32; bfloat16 is a GPU's default
    torch.backends.cudnn.allow_tf32 = False  # of convolutions too
    torch.backends.cudnn.benchmark = False
    keep_freed_memory()


def autocast_for(config: Setup, device: torch.device) -> Autocast:
    """bfloat16 where the configuration has it; no-op for float32."""
    return functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=config.trainer.dtype == "bfloat16")


def seeded_model(config: Setup, device: torch.device) -> nn.Module:
    """The model's first weights: a function of the seed alone, made on the CPU."""
    torch.manual_seed(config.seed)
    return config.model.build().to(device)


def objective_for(config: Setup, model: nn.Module) -> nn.Module:
    """What is trained and evaluated: the model with its loss, compiled with trainer.compile."""
    objective = Objective(model, config.model.computes_loss(model))
    if not config.trainer.compile:
        return objective
    # One graph for each shape: with dynamic shapes the kernels would depend on which batch size came first.
    return torch.compile(objective, dynamic=False)  # type: ignore[return-value]
