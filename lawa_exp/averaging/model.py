"""Averagers for any training loop: made for a model, told when a step is done."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from lawa_exp.averaging import settings as kinds
from lawa_exp.averaging.accumulator import SLOT
from lawa_exp.averaging.swap import Swap
from lawa_exp.averaging.tensors import (
    Observed,
    averaged_names,
    is_sharded,
    live_tensors,
    local_part,
    named_tensors,
    unwrapped,
)
from lawa_exp.averaging.window import Snapshot, Window
from lawa_exp.config.rules import build, setting_names
from lawa_exp.system.errors import UserError


class ModelAverager:
    """An averager of a model's weights.

    model: plain, or inside torch.compile, DistributedDataParallel or fully_shard (each rank averages its own shards and
    no rank waits for another). It may be moved or cast later; the average follows. Floating-point parameters are
    averaged; buffers are as they were at the last observation. window: one for several averagers that need snapshots,
    which then hold each only once; by default one of its own, in memory. `window.fence_before(optimizer)` makes its
    copies beside the next forward and backward pass. ValueError for a setting that cannot be.
    """

    def __init__(self, model: nn.Module, window: Window | None, cls: type, **given: Any) -> None:
        kind: str = cls.kind  # type: ignore[attr-defined]
        settings: Any = build(cls, given, kind)
        for name in ("spacing", "every", "start"):
            if isinstance(getattr(settings, name, 0), str):
                raise UserError(f"{kind}.{name}={given[name]}: expected a number of steps")
        self.settings, self.model = settings, model
        self.window = Window() if window is None else window
        self.window.bind(unwrapped(model))
        self.averager = kinds.build_averager(settings, averaged_names(model), self.window)
        self._observed = Observed(model)
        self._devices = _devices(live_tensors(model))
        self._updated: int | None = None  # the last step that `update` was told
        self._warned = False

    @property
    def id(self) -> str:
        """Kind and settings, as in `lawa-k5-s1000`."""
        return self.settings.id

    @property
    def defined(self) -> bool:
        """Whether enough was observed for an average."""
        return self.averager.defined

    @property
    def in_place(self) -> bool:
        """Whether this average or another is in place of the model's live weights."""
        return Swap(self.model, {}).away

    def update(self, step: int) -> None:
        """Call after each optimizer update; step: the number of updates completed, so 1 after the first.

        ValueError for a step that does not come after the last observed one, and where the model has other parameters
        than it was made with; RuntimeError inside `applied`. A warning, once, where steps that it would have observed
        were left out.
        """
        self._refuse_while_applied()
        if 0 < step <= self.averager.step:
            raise ValueError(f"{self.id}: step {step} after step {self.averager.step}; steps must increase")
        self._warn_of_missed(step)
        self._updated = step
        if self.averager.step == 0:  # what the window holds from here on is of an earlier training of the model
            self.window.drop(lambda s: s >= step)
        live: dict[str, Tensor] = {}
        if kinds.observes(self.settings, step):
            live, averaged = self._observed.tensors()
            for name in sorted(averaged ^ self.averager.averaged):
                change = "a parameter that it did not have" if name in averaged else "no parameter of it any more"
                raise ValueError(f"{self.id}: the model has changed, {name} is {change}; make a new averager")
            if _devices(live) != self._devices:  # the model has been moved
                tensors, scalars = self.averager.state()
                self._take_over(tensors, scalars, live)
        self.averager.update(step, live)

    def average(self) -> dict[str, Tensor] | None:
        """The averaged weights and the latest buffers as new tensors by name, tied weights once; None while undefined.

        Names are those of the unwrapped model. Of a sharded model this rank's shards.
        """
        return self.averager.average()

    def full_average(self) -> dict[str, Tensor] | None:
        """The whole average on the CPU of rank 0, to be written or loaded into an unsharded model; None elsewhere.

        All ranks of a sharded model must call it. Tensors share no memory, as safetensors asks. RuntimeError where the
        average is not defined yet.
        """
        weights = self._defined_average()
        here = not dist.is_initialized() or dist.get_rank() == 0
        whole = {}
        for name, tensor in named_tensors(self.model).items():
            gathered = _gathered(weights.pop(name), tensor)
            if here:
                whole[name] = gathered.cpu().contiguous()
        return whole if here else None

    @contextmanager
    def applied(self, model: nn.Module | None = None) -> Iterator[None]:
        """Inside, the model computes with the average; afterwards the live weights are back, byte for byte.

        model: another one with the same names and shapes, such as a copy kept for evaluation (default: its own).
        RuntimeError where the average is not defined yet, or one is in place already.
        """
        swap = Swap(self.model if model is None else model)
        if swap.away:
            raise RuntimeError(f"{self.id}: an average is in place already")
        weights = self._defined_average()
        self.window.fence()
        with swap.applied(weights):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs; its tensors are copies.

        For torch.save, one file for each rank if the model is sharded; or for torch.distributed.checkpoint, as in
        `dcp.save({"model": ..., "lawa": lawa})`, where any number of ranks can load it. For that it has the same
        tensors from the first step on (zeros for what was not observed yet), and those of a sharded model are DTensors.

        Averagers that share a window each save the snapshots that they need, so one that two need is saved twice. Were
        it one tensor in both states, `dcp.load`, which loads in place into what this returns, would put the snapshots
        of two slots into one where the averagers stand at other steps than those that were saved.
        """
        self._refuse_while_applied()
        named = named_tensors(self.model)
        live = {name: local_part(tensor) for name, tensor in named.items()}
        tensors, scalars = self.averager.state()
        slots: list[Mapping[str, Tensor]] = []
        if self.settings.windowed:
            scalars = scalars | {"window": self.averager.held}
            slots = [self.window.snapshots[s].tensors for s in scalars["window"]]
            slots += [_zeros(live)] * (self.settings.k - len(slots))
        elif not self.defined:
            blank = kinds.build_averager(self.settings, self.averager.averaged, self.window)
            blank.begin(0, _zeros(live))
            tensors, scalars = blank.state()[0], blank.state()[1] | {"count": 0}
        return {
            "settings": dataclasses.asdict(self.settings),
            "scalars": scalars,
            "tensors": {n: _copy(t, named[_tensor_name(n)]) for n, t in tensors.items()},
            "window": {str(i): {n: _copy(t, named[n]) for n, t in held.items()} for i, held in enumerate(slots)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave; into a new averager or an old one, which then forgets what it observed.

        ValueError names a kind, a setting or a tensor that does not fit.
        """
        mine = dataclasses.asdict(self.settings)
        theirs = {kind for kind, (cls, _) in kinds.AVERAGERS.items() if {*setting_names(cls)} == {*state["settings"]}}
        if theirs and self.settings.kind not in theirs:
            raise ValueError(
                f"{self.id}: the state is that of another kind of averager ({' or '.join(sorted(theirs))})"
            )
        for name, value in state["settings"].items():
            if mine.get(name) != value:
                raise ValueError(f"{self.id}: the state was saved with {name}={value}, here it is {mine.get(name)}")
        live, scalars = live_tensors(self.model), state["scalars"]
        tensors, window = (
            state["tensors"],
            {s: state["window"][str(i)] for i, s in enumerate(scalars.get("window", []))},
        )
        for held in window.values() if self.settings.windowed else [tensors]:
            self._check_shapes({_tensor_name(n): local_part(t) for n, t in held.items()}, live)
        self._take_over(tensors, scalars, live)
        self._updated = scalars["step"]
        self.window.fence()
        needed = self.settings.needed(scalars["step"])  # of these the state holds all that there were
        self.window.drop(lambda s: s > scalars["step"] or (s in needed and s not in window))
        for step, held in window.items():
            copies = {n: local_part(t).to("cpu", copy=True) for n, t in held.items()}
            self.window.put(Snapshot(step, copies))

    def _take_over(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], live: Mapping[str, Tensor]) -> None:
        """The averager's own tensors, each copied to the device of the weight that it belongs to."""
        copies = {n: local_part(t).to(live[_tensor_name(n)].device, copy=True) for n, t in tensors.items()}
        self.averager.load(copies, scalars)
        self._devices = _devices(live)

    def _check_shapes(self, tensors: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
        for name in sorted(tensors.keys() | live.keys()):
            theirs, ours = (list(t[name].shape) if name in t else "missing" for t in (tensors, live))
            if theirs != ours:
                raise ValueError(
                    f"{self.id}: {name} is {theirs} in the state and {ours} in the model"
                    " (for another number of ranks use torch.distributed.checkpoint)"
                )

    def _warn_of_missed(self, step: int) -> None:
        """Where `update` jumps to `step` over one that it would have observed."""
        if self._updated is None or self._warned:
            return
        due = kinds.observed_steps(self.settings, step - 1)
        if len(due) and due[-1] > self._updated:
            name = "spacing" if self.settings.windowed else "every"
            missed = next(s for s in due if s > self._updated)
            warnings.warn(
                f"{self.id}: update({self._updated}) was followed by update({step}), so step {missed} was never "
                f"observed; call update after every step, or choose {name} so that it is called at all its multiples",
                stacklevel=3,
            )
            self._warned = True

    def _refuse_while_applied(self) -> None:
        if self.in_place:
            raise RuntimeError(f"{self.id}: an average is in place of the live weights")

    def _defined_average(self) -> dict[str, Tensor]:
        weights = self.average()
        if weights is None:
            raise RuntimeError(f"{self.id} is not defined yet: {self._missing()}")
        return weights

    def _missing(self) -> str:
        if not self.settings.windowed:
            return "nothing was observed"
        return f"it needs {self.settings.k} snapshots and has those of steps {self.averager.held}"


def _tensor_name(name: str) -> str:
    """The weight's, of an averager's own tensor (`slot|name`) or of the weight itself."""
    return name.partition(SLOT)[2] or name


def _devices(live: Mapping[str, Tensor]) -> list[torch.device]:
    return [t.device for t in live.values()]


def _zeros(live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: torch.zeros_like(t) for n, t in live.items()}


def _copy(part: Tensor, like: Tensor) -> Tensor:
    """A copy of `part`, this rank's of a tensor that is distributed as `like` is, as a tensor distributed so."""
    if not is_sharded(like):
        return part.clone()
    copy: Any = torch.empty_like(like, dtype=part.dtype, device=part.device)
    copy.to_local().copy_(part)
    return copy


def _gathered(part: Tensor, like: Any) -> Tensor:
    """The whole tensor of which `part` is this rank's; a collective if `like` is distributed."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    layout = {"shape": like.shape, "stride": like.stride(), "run_check": False}
    return DTensor.from_local(part, like.device_mesh, like.placements, **layout).full_tensor()


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
        self, model: nn.Module, decay: float | str = 0.99, every: int = 1, start: int = 0, warmup: bool = False
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
