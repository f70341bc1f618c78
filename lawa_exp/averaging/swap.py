"""Other weights in place of the live ones for a while."""

from __future__ import annotations

import random
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lawa_exp.averaging.tensors import live_tensors, reshard, unwrapped

_swapped: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models in which other weights are in place


class Swap:
    """Puts other weights in place of the live ones, and the live bytes back; meanwhile nothing may be saved."""

    def __init__(self, model: nn.Module, live: Mapping[str, Tensor] | None = None) -> None:
        """live: the model's `live_tensors`, where the caller has them."""
        self.model = unwrapped(model)
        self.live = live_tensors(model) if live is None else live

    @property
    def away(self) -> bool:
        """Whether the live weights are, in this swap or another one of the same model."""
        return self.model in _swapped

    @contextmanager
    def applied(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model computes with `weights` (names of `live`; on any device)."""
        with self.session() as place:
            place(weights)
            yield

    @contextmanager
    def session(self) -> Iterator[Callable[[Mapping[str, Tensor]], None]]:
        """Inside, what it gives puts weights into the model, one after the other; one copy of the live ones is kept."""
        assert not self.away, "weights are already swapped"
        reshard(self.model)
        kept = {name: tensor.clone() for name, tensor in self.live.items()}
        _swapped.add(self.model)
        try:
            yield self._fit_in
        finally:
            with uninterrupted():  # a KeyboardInterrupt half-way would leave a mix that looks like live weights
                reshard(self.model)
                self._put(kept)
                _swapped.discard(self.model)

    def place(self, weights: Mapping[str, Tensor]) -> None:
        """Puts them in for good, without a copy of what was there: for a model that is only evaluated."""
        assert not self.away, "weights are already swapped"
        self._fit_in(weights)

    def _fit_in(self, weights: Mapping[str, Tensor]) -> None:
        assert weights.keys() == self.live.keys(), "the weights do not fit the model"
        reshard(self.model)
        self._put(weights)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self.live.items():
            tensor.copy_(weights[name])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT is handled at the end (in the main thread, where Python handles signals)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler or signal.SIG_DFL)  # None: it was not set from Python
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Afterwards as if nothing had been drawn inside (by data loaders, say)."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
