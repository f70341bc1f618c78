"""The arithmetic that a training and the evaluation of its averages share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import torch
from torch import nn

from lawa_exp.axes.layers.settings import LayersSettings
from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.axes.objective.task_loss import Scorer, TaskLoss
from lawa_exp.config.shared import Trainer
from lawa_exp.seams.callback import Callback
from lawa_exp.seams.task import Task
from lawa_exp.system.memory import allocating, keep_freed_memory

Autocast: TypeAlias = Callable[[], AbstractContextManager[object]]  # a fresh context at each call


class Setup(Protocol):
    """What decides a model and its arithmetic: a `Config`, or as much of one."""

    @property
    def model(self) -> ModelSettings: ...

    @property
    def seed(self) -> int: ...

    @property
    def trainer(self) -> Trainer: ...

    @property
    def layers(self) -> Sequence[tuple[str, LayersSettings]]: ...


def set_up_arithmetic(config: Setup) -> None:
    """Threads and determinism, both explicit so that an earlier run in this process leaves no trace."""
    torch.set_num_threads(config.trainer.threads)
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    exact_float32()
    keep_freed_memory()


def exact_float32() -> None:
    """No shorter numbers in its place, and no choice of kernels by their speed."""
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32; bfloat16 is a GPU's default
    torch.backends.cudnn.allow_tf32 = False  # of convolutions too
    torch.backends.cudnn.benchmark = False


def autocast_for(config: Setup, device: torch.device) -> Autocast:
    """bfloat16 where the configuration has it; no-op for float32."""
    return functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=config.trainer.dtype == "bfloat16")


def seeded_model(config: Setup, device: torch.device) -> nn.Module:
    """The model's first weights: a function of the seed alone, made on the CPU."""
    return layered_model(config, device)[0]


def layered_model(config: Setup, device: torch.device) -> tuple[nn.Module, dict[int, Callback]]:
    """`seeded_model`, and what the layers need in training, by their places in the list."""
    torch.manual_seed(config.seed)
    with allocating(f"model={config.model.name}"):
        model = config.model.build()
        callbacks = [settings.apply(model) for _, settings in config.layers]
        model = model.to(device)
    return model, {place: callback for place, callback in enumerate(callbacks) if callback}


def task_loss(config: Setup, model: nn.Module, task: Task) -> TaskLoss:
    """The loss of the data set's task, of the model of this configuration."""
    return TaskLoss(model, task, config.model.computes_loss(model))


def scorer_for(config: Setup, model: nn.Module, task: Task) -> nn.Module:
    """What evaluates the model: see `Evaluation`."""
    return compiled(config, Scorer(model, task, config.model.computes_loss(model)))


def compiled(config: Setup, module: nn.Module) -> nn.Module:
    """Compiled, with trainer.compile."""
    if not config.trainer.compile:
        return module
    # One graph for each shape: with dynamic shapes the kernels would depend on which batch size came first.
    return torch.compile(module, dynamic=False)  # type: ignore[return-value]
