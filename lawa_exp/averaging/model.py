"""Averagers for any training loop: made for a model, told when a step is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lawa_exp.averaging import settings as kinds
from lawa_exp.averaging.swap import Swap, averaged_names, live_tensors
from lawa_exp.averaging.window import Snapshot, Window
from lawa_exp.config import UserError, build


class ModelAverager:
    """An averager of a model's weights.

    model: plain, or inside torch.compile, DistributedDataParallel or fully_shard (each rank averages its own shards);
    make the averager after wrapping it and moving it to its device. window: one for several averagers that need
    snapshots, which then hold each only once (default: one of its own). Floating-point parameters are averaged;
    buffers are as they were at the last observation. Raises UserError, a ValueError, for a setting that cannot be.
    """

    def __init__(self, model: nn.Module, window: Window | None, cls: type, **given: Any) -> None:
        settings: Any = build(cls, given, cls.kind)  # type: ignore[attr-defined]
        for name in ("spacing", "every", "start"):
            if isinstance(getattr(settings, name, 0), str):
                raise UserError(f"{cls.kind}.{name}={given[name]}: expected a number of steps")  # type: ignore[attr-defined]
        self.settings = settings
        self.window = Window() if window is None else window
        self.live = live_tensors(model)
        self.averager = kinds.build_averager(settings, averaged_names(model), self.window)
        self._swap = Swap(model, self.live)

    @property
    def id(self) -> str:
        """Kind and settings, as in `lawa-k5-s1000`."""
        return self.settings.id

    def update(self, step: int) -> None:
        """Call after each optimizer update; step: the number of updates completed, so 1 after the first."""
        assert not self._swap.away, "the average is in place of the live weights"
        self.averager.update(step, self.live)

    def average(self) -> dict[str, Tensor] | None:
        """The averaged weights (and the latest buffers) as new tensors by name; None while undefined.

        Of a sharded model this rank's shards.
        """
        return self.averager.average()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model computes with the average; afterwards the live weights are back, byte for byte.

        RuntimeError where the average is not defined yet.
        """
        weights = self.average()
        if weights is None:
            needed = self.settings.observations
            raise RuntimeError(f"{self.id} is not defined yet: it needs {needed} observation(s)")
        self.window.fence()
        with self._swap.applied(weights):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs (of a sharded model: for this rank); tensors are copies."""
        tensors, scalars = self.averager.state()
        held = self.window.snapshots if self.settings.windowed else {}
        needed = self.settings.needed(scalars["step"]) if held else ()
        return {
            "settings": dataclasses.asdict(self.settings),
            "scalars": scalars,
            "tensors": {n: t.clone() for n, t in tensors.items()},
            "window": {s: {n: t.clone() for n, t in held[s].tensors.items()} for s in needed if s in held},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave. ValueError names a setting that differs."""
        mine = dataclasses.asdict(self.settings)
        for name, value in state["settings"].items():
            if mine.get(name) != value:
                raise ValueError(f"{self.id}: the state was saved with {name}={value}, here it is {mine.get(name)}")
        device = next(iter(self.live.values())).device
        with torch.no_grad():
            tensors = {n: t.to(device, copy=True) for n, t in state["tensors"].items()}
            self.averager.load(tensors, state["scalars"])
            for step, held in state["window"].items():
                self.window.snapshots.setdefault(step, Snapshot(step, {n: t.cpu().clone() for n, t in held.items()}))


class Lawa(ModelAverager):
    __doc__ = kinds.LawaSettings.__doc__

    def __init__(
        self, model: nn.Module, k: int = 5, spacing: int = 1000, start: int = 0, window: Window | None = None
    ) -> None:
        super().__init__(model, window, kinds.LawaSettings, k=k, spacing=spacing, start=start)


class Wma(ModelAverager):
    __doc__ = kinds.WmaSettings.__doc__

    def __init__(
        self, model: nn.Module, k: int = 5, spacing: int = 1000, start: int = 0, window: Window | None = None
    ) -> None:
        super().__init__(model, window, kinds.WmaSettings, k=k, spacing=spacing, start=start)


class Ema(ModelAverager):
    __doc__ = kinds.EmaSettings.__doc__

    def __init__(
        self, model: nn.Module, decay: float | str = 0.999, every: int = 1, start: int = 0, warmup: bool = False
    ) -> None:
        super().__init__(model, None, kinds.EmaSettings, decay=decay, every=every, start=start, warmup=warmup)


class PowerEma(ModelAverager):
    __doc__ = kinds.PowerEmaSettings.__doc__

    def __init__(self, model: nn.Module, sigma_rel: float = 0.1, every: int = 1) -> None:
        super().__init__(model, None, kinds.PowerEmaSettings, sigma_rel=sigma_rel, every=every)


class Swa(ModelAverager):
    __doc__ = kinds.SwaSettings.__doc__

    def __init__(self, model: nn.Module, every: int = 1, start: int = 0) -> None:
        super().__init__(model, None, kinds.SwaSettings, every=every, start=start)


class Bema(ModelAverager):
    __doc__ = kinds.BemaSettings.__doc__

    def __init__(
        self,
        model: nn.Module,
        every: int = 400,
        start: int = 0,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: float = 10,
    ) -> None:
        powers = {"ema_power": ema_power, "bias_power": bias_power, "lag": lag}
        super().__init__(model, None, kinds.BemaSettings, every=every, start=start, **powers)
