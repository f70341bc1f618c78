"""Averagers for any training loop: made for a model, and called when a step is done.

torch is imported inside the functions: `Lawa` and the others stand in one file with their settings, which every command
reads when it starts.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lawa_exp.averaging.averager import SLOT, build_averager
from lawa_exp.averaging.settings import AveragerSettings, observed_steps, observes, unresolved
from lawa_exp.config.rules import build, setting_names
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lawa_exp.averaging.window import Window


def described(settings: type[AveragerSettings]) -> str:
    """The docstring of an averager's class: that of its settings, and what it is made of."""
    return f"""{settings.__doc__}
    model: any module. Call `update(step)` after each optimizer step; `average()` and `applied()` give and use the mean.
    The methods, their errors, and what a sharded or compiled model needs: `ModelAverager`.
    """


class ModelAverager:
    """An averager of a model's weights: any, by its settings. `Lawa`, `Ema` and the others take theirs by name.

    model: plain, or inside torch.compile, DistributedDataParallel or fully_shard (each rank averages its own shards and
    no rank waits for another). It may be moved or cast later; the average follows. Floating-point parameters are
    averaged; buffers are as they were at the last observation. window: one for several averagers that need snapshots,
    which then store each only once; by default one of its own, in memory. `window.fence_before(optimizer)` makes its
    copies during the next forward and backward pass. ValueError for a setting that cannot be.
    """

    def __init__(self, model: nn.Module, settings: AveragerSettings, window: Window | None = None) -> None:
        from lawa_exp.averaging.statistics import warn_of_statistics
        from lawa_exp.averaging.tensors import Observed, averaged_names, live_tensors, unwrapped
        from lawa_exp.averaging.window import Window

        values = dataclasses.asdict(settings)
        if text := unresolved(type(settings), values):
            raise UserError(f"{settings.kind}.{text}: expected a number of steps")
        self.settings = build(type(settings), values, settings.kind)
        self.model = model
        self.window = Window() if window is None else window
        self.window.bind(unwrapped(model))
        self.averager = build_averager(self.settings, averaged_names(model), self.window)
        self._observed = Observed(model)
        live = live_tensors(model)
        self._devices = _devices(live)  # of the weights that it has observed
        self._shapes = {name: live[name].shape for name in self.averager.averaged}
        self._updated: int | None = None  # the last step that `update` was called with
        self._warned = False  # of steps that were left out
        warn_of_statistics(model)
        self.holder: nn.Module | None = None  # the model that the average is in, inside `applied`

    def __repr__(self) -> str:
        """As in `<Lawa(k=3, spacing=10, start=0) of Linear: undefined after step 8>`."""
        values = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(self.settings).items())
        state = "defined" if self.defined else "undefined"
        after = f" after step {self._updated:,}" if self._updated is not None else ""
        return f"<{type(self).__name__}({values}) of {type(self.model).__name__}: {state}{after}>"

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
        from lawa_exp.averaging.swap import Swap

        return Swap(self.model, {}).away

    def update(self, step: int) -> None:
        """Call after each optimizer update; step: the number of updates completed, so 1 after the first.

        ValueError for a step that does not come after the last observed one, and where the model has other parameters
        than the averager was made with, or a parameter of another shape; RuntimeError inside `applied`. A warning,
        once, where steps that it would have observed were left out.
        """
        self._refuse_while_applied()
        if 0 < step <= self.averager.step:
            raise ValueError(f"{self.id}: step {step} after step {self.averager.step}; steps must increase")
        self._warn_of_missed(step)
        self._updated = step
        if self.averager.step == 0:  # snapshots of this step and later ones are of an earlier training of the model
            self.window.drop(lambda s: s >= step)
        live: dict[str, Tensor] = {}
        if observes(self.settings, step):
            live, averaged = self._observed.tensors()
            for name in sorted(averaged ^ self.averager.averaged):
                change = "a parameter that it did not have" if name in averaged else "no parameter of it any more"
                raise ValueError(f"{self.id}: the model has changed, {name} is {change}; make a new averager")
            for name, shape in self._shapes.items():
                if live[name].shape != shape:
                    raise ValueError(
                        f"{self.id}: the model has changed, {name} had shape {list(shape)} and has "
                        f"{list(live[name].shape)}; make a new averager"
                    )
            if _devices(live) != self._devices:  # the model has been moved
                tensors, scalars = self.averager.state()
                self._take_over(tensors, scalars, live)
        self.averager.update(step, live)

    def average(self) -> dict[str, Tensor] | None:
        """The averaged weights and the latest buffers as new tensors by name, tied weights once; None while undefined.

        Names are those of the unwrapped model. Of a sharded model this rank's shards.
        """
        return self.averager.average()

    def full_average(self, tied_once: bool = False) -> dict[str, Tensor] | None:
        """The whole average on the CPU of rank 0, to be written or loaded into an unsharded model; None elsewhere.

        It has every name of the state dict of the model without torch.compile, for `load_state_dict`. tied_once: of
        tied weights the first name alone, for safetensors' `load_model` and transformers' `save_pretrained`. Tensors
        share no memory, as safetensors asks. All ranks of a sharded model must call it. RuntimeError where the average
        is not defined yet. Inside `applied` it is what the model holds then: with the statistics of BatchNorm that were
        recalibrated there; elsewhere they are the latest observed.
        """
        from torch import distributed as dist

        from lawa_exp.averaging.tensors import all_names, gathered, local_part, named_tensors

        if self.holder is None:
            weights = self._defined_average()
        else:
            weights = {name: local_part(t).clone() for name, t in named_tensors(self.holder).items()}
        is_first = not dist.is_initialized() or dist.get_rank() == 0
        average = {}
        for name, tensor in named_tensors(self.model).items():
            whole = gathered(weights.pop(name), tensor)
            if is_first:
                average[name] = whole.cpu().contiguous()
        if not is_first:
            return None
        if tied_once:
            return average
        names = all_names(self.model)
        return {name: average[first] if name == first else average[first].clone() for name, first in names.items()}

    @contextmanager
    def applied(self, model: nn.Module | None = None) -> Iterator[None]:
        """Inside, the model computes with the average; afterwards the live weights are back, byte for byte.

        A model with BatchNorm has the latest statistics there: `recalibrate(averager, batches)` inside makes those of
        the average, and `full_average()` inside is the average with them.

        model: another one with the same names and shapes, such as a copy kept for evaluation (default: its own).
        RuntimeError where the average is not defined yet, or one is in place already.
        """
        from lawa_exp.averaging.swap import Swap

        swap = Swap(self.model if model is None else model)
        if swap.away:
            raise RuntimeError(f"{self.id}: an average is in place already")
        weights = self._defined_average()
        self.window.fence()
        with swap.applied(weights):
            self.holder = swap.model
            try:
                yield
            finally:
                self.holder = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs; its tensors are copies.

        For torch.save, one file for each rank if the model is sharded; or for torch.distributed.checkpoint, as in
        `dcp.save({"model": ..., "lawa": lawa})`, where any number of ranks can load it. For that it has the same
        tensors from the first step on (zeros for what was not observed yet), and those of a sharded model are DTensors.

        Averagers that share a window each save the snapshots that they need, so one that two need is saved twice. Were
        it one tensor in both states, `dcp.load`, which loads in place into what this returns, would put the snapshots
        of two slots into one where the averagers stand at other steps than those that were saved.
        """
        from lawa_exp.averaging.accumulator import Accumulator
        from lawa_exp.averaging.tensors import copy_like, local_part, named_tensors
        from lawa_exp.averaging.windowed import WindowAverage

        self._refuse_while_applied()
        named = named_tensors(self.model)
        live = {name: local_part(tensor) for name, tensor in named.items()}
        averager = self.averager
        tensors, scalars = averager.state()
        snapshots: list[Mapping[str, Tensor]] = []
        if isinstance(averager, WindowAverage):
            steps = averager.snapshot_steps
            scalars = scalars | {"window": steps}
            snapshots = [self.window.snapshots[s].tensors for s in steps]
            snapshots += [_zeros(live)] * (averager.settings.k - len(steps))
        elif isinstance(averager, Accumulator) and not averager.defined:
            blank = Accumulator(averager.settings, averager.averaged)
            blank.begin(0, _zeros(live))
            tensors, scalars = blank.state()[0], blank.state()[1] | {"count": 0}
        return {
            "settings": dataclasses.asdict(self.settings),
            "scalars": scalars,
            "tensors": {n: copy_like(t, named[_tensor_name(n)]) for n, t in tensors.items()},
            "window": {str(i): {n: copy_like(t, named[n]) for n, t in s.items()} for i, s in enumerate(snapshots)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave; into a new averager or an old one, which then forgets what it observed.

        ValueError names a kind, a setting or a tensor that does not fit.
        """
        from lawa_exp.averaging.tensors import live_tensors, local_part
        from lawa_exp.averaging.window import Snapshot

        self._check_settings(state["settings"])
        live, scalars, tensors = live_tensors(self.model), state["scalars"], state["tensors"]
        snapshots = {step: state["window"][str(i)] for i, step in enumerate(scalars.get("window", []))}
        for saved in snapshots.values() if self.settings.windowed else [tensors]:
            self._check_shapes({_tensor_name(n): local_part(t) for n, t in saved.items()}, live)
        self._take_over(tensors, scalars, live)
        self._updated = scalars["step"]
        self.window.fence()
        needed = self.settings.needed(scalars["step"])  # the state has all of these that there were
        self.window.drop(lambda s: s > scalars["step"] or (s in needed and s not in snapshots))
        for step, saved in snapshots.items():
            copies = {n: local_part(t).to("cpu", copy=True) for n, t in saved.items()}
            self.window.put(Snapshot(step, copies))

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles. RuntimeError inside `applied`: the copy would take the average for live weights."""
        self._refuse_while_applied()
        return self.__dict__

    def _check_settings(self, saved: Mapping[str, Any]) -> None:
        from lawa_exp.averaging import AVERAGERS

        table = {**AVERAGERS, self.settings.kind: type(self.settings)}
        kinds = {kind for kind, cls in table.items() if {*setting_names(cls)} == {*saved}}
        if kinds and self.settings.kind not in kinds:
            raise ValueError(f"{self.id}: the state is that of another kind of averager ({' or '.join(sorted(kinds))})")
        own = dataclasses.asdict(self.settings)
        for name, value in saved.items():
            if own.get(name) != value:
                raise ValueError(f"{self.id}: the state was saved with {name}={value}, here it is {own.get(name)}")

    def _take_over(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], live: Mapping[str, Tensor]) -> None:
        """The averager's own tensors, each copied to the device of the weight that it belongs to."""
        from lawa_exp.averaging.tensors import local_part

        copies = {n: local_part(t).to(live[_tensor_name(n)].device, copy=True) for n, t in tensors.items()}
        self.averager.load(copies, scalars)
        self._devices = _devices(live)

    def _check_shapes(self, tensors: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
        for name in sorted(tensors.keys() | live.keys()):
            saved, own = (list(t[name].shape) if name in t else "missing" for t in (tensors, live))
            if saved != own:
                raise ValueError(
                    f"{self.id}: {name} is {saved} in the state and {own} in the model"
                    " (for another number of ranks use torch.distributed.checkpoint)"
                )

    def _warn_of_missed(self, step: int) -> None:
        """Where `update` jumps to `step` over one that it would have observed."""
        if self._updated is None or self._warned:
            return
        due = observed_steps(self.settings, step - 1)
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
        from lawa_exp.averaging.windowed import WindowAverage

        if not isinstance(self.averager, WindowAverage):
            return "nothing was observed"
        steps = self.averager.snapshot_steps
        return f"it needs {self.averager.settings.k} snapshots and has those of steps {steps}"


def _tensor_name(name: str) -> str:
    """The weight's, of an averager's own tensor (`slot|name`) or of the weight itself."""
    return name.partition(SLOT)[2] or name


def _devices(live: Mapping[str, Tensor]) -> list[torch.device]:
    return [t.device for t in live.values()]


def _zeros(live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    return {n: torch.zeros_like(t) for n, t in live.items()}
