"""Modules with statistics of their own: numbers of what passes through them, which no gradient changes.

Recalibration, the exchange between ranks, activation checkpointing and the rows of evaluations ask this protocol, and
no class. A module has it where its class defines all of `Statistics`; torch's BatchNorms have it by `OfBatchNorm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Statistics(Protocol):
    """What a module defines that has statistics of its own; `Dice(nn.Module)` needs no base class of ours.

    They are buffers, and a pass in training mode changes them in place.
    """

    def statistics(self) -> dict[str, Tensor]:
        """The floating-point ones by their names in the module, the very tensors; empty: it keeps none.

        `evaluate.bn` recalibrates, averages or takes over these. A variance is called `running_var`, or `*.running_var`
        of an inner module: no average of it becomes negative.
        """
        ...

    def reset(self) -> None:
        """As if no pass had been seen, in place."""
        ...

    def observe(self) -> AbstractContextManager[None]:
        """Meanwhile each pass counts, whatever the module's mode, and all passes since `reset` count alike."""
        ...

    def frozen(self) -> AbstractContextManager[None]:
        """Meanwhile what passes change are copies, which are dropped: `buffers_kept` does it for a module's buffers."""
        ...


METHODS = ("statistics", "reset", "observe", "frozen")


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Meanwhile the module, without those inside it, has copies of its buffers."""
    buffers = dict(module._buffers)
    module._buffers.update({name: None if t is None else t.clone() for name, t in buffers.items()})
    try:
        yield
    finally:
        module._buffers.update(buffers)


class OfBatchNorm:
    """The protocol for one of torch's BatchNorms."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm

    def statistics(self) -> dict[str, Tensor]:
        of = {"running_mean": self.norm.running_mean, "running_var": self.norm.running_var}
        return {name: tensor for name, tensor in of.items() if tensor is not None}

    def reset(self) -> None:
        self.norm.reset_running_stats()

    @contextmanager
    def observe(self) -> Iterator[None]:
        mode, momentum = self.norm.training, self.norm.momentum
        self.norm.train()
        self.norm.momentum = None  # a cumulative average, for modules that are called more than once
        try:
            yield
        finally:
            self.norm.training, self.norm.momentum = mode, momentum

    def frozen(self) -> AbstractContextManager[None]:
        return buffers_kept(self.norm)


def statistics_of(module: nn.Module) -> Statistics | None:
    """Its protocol, also where it keeps no statistics; None of a module that does not have it."""
    if all(callable(getattr(type(module), name, None)) for name in METHODS):
        return cast(Statistics, module)
    return OfBatchNorm(module) if isinstance(module, _BatchNorm) else None


def keeping_statistics(model: nn.Module) -> Iterator[tuple[str, nn.Module, Statistics]]:
    """Those of its modules, itself among them, that keep statistics: (name, module, its protocol)."""
    for name, module in model.named_modules():
        own = statistics_of(module)
        if own is not None and own.statistics():
            yield name, module, own


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Meanwhile passes of `model` change copies of its statistics, which are dropped."""
    with ExitStack() as stack:
        for _, _, own in keeping_statistics(model):
            stack.enter_context(own.frozen())
        yield
