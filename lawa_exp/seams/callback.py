"""Hooks around the optimizer's update: what a training carries besides its model.

The order of a step: `before_step` of all; for each pass `before_pass`, then the pass; `after_passes` of layers,
objective and watches, which see the gradients before clipping; clipping; `after_passes` of the update's callbacks, in
the order of their list; the optimizer; `after_update`, in the same order, and last the feedback's. Averagers and
snapshots see the weights after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lawa_exp.seams.samples import Pass

Saved: TypeAlias = "tuple[Mapping[str, Tensor], Mapping[str, Any]]"  # tensors by name, and what JSON can hold


class Callback:
    """All moments are optional, and one that is not overridden is never called. They are called on every rank.

    `begin` and `after_update` alone may change weights: at other times they may be being copied. A callback with
    `begin` has a `state`, since without one it would begin again whenever the training is resumed.

    Nothing waits for the device, but for `waits` and in `arrived`, whose numbers are on the host. What decides the
    weights must be the same on every rank: reduce over the ranks what is not.
    """

    def begin(self, live: Mapping[str, Tensor]) -> None:
        """Before the first update of a training that goes on from no state of this callback. live: the weights."""

    def before_step(self, step: int) -> None:
        """The update that completes `step` is next."""

    def before_pass(self, at: Pass) -> None:
        """A forward pass is next."""

    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        """The gradients of the whole batch are there, and may be changed. Returns scalars that `arrived` gets."""
        return {}

    def after_update(self, step: int, live: Mapping[str, Tensor]) -> None:
        """The weights of `step` are there, and may be changed in place."""

    def waits(self, step: int) -> bool:
        """Whether `after_update` may follow only once the loss of `step` is known to be finite."""
        return False

    def arrived(self, step: int, numbers: Mapping[str, float]) -> Mapping[str, float]:
        """The numbers of `step` are on the host: steps in order, and always before a state is saved.

        numbers: `loss`, `grad_norm`, the terms of the objective, what `after_passes` of all returned. Returns fields
        for the row of the step.
        """
        return {}

    def state(self) -> Saved:
        """What a resumed training needs. Tensors: no copies, of a sharded model this rank's rows.

        The name of a tensor that belongs to a parameter is the parameter's, or `slot|parameter`.
        """
        return {}, {}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""


def overridden(callback: Callback, moment: str) -> bool:
    """Whether it has something to do at this moment."""
    return getattr(type(callback), moment) is not getattr(Callback, moment)


class Callbacks:
    """Those of a training by name, in the order in which they are called, and of each moment only who acts there.

    update: the names of those that act between clipping and the optimizer.
    """

    def __init__(self, named: Mapping[str, Callback], update: Iterable[str] = ()) -> None:
        self.named, own = dict(named), set(update)
        for name, callback in named.items():
            if overridden(callback, "begin") and not overridden(callback, "state"):
                raise UserError(f"{name}: it has begin and no state, and would begin again at each resume")
            if overridden(callback, "state") != overridden(callback, "load"):
                raise UserError(f"{name}: expected both state and load, or neither")
        self.before_step: list[Callable[[int], None]] = self._of("before_step")
        self.before_pass: list[Callable[[Pass], None]] = self._of("before_pass")
        self.after_passes: list[Callable[[int], Mapping[str, Tensor]]] = self._of("after_passes", named.keys() - own)
        self.before_update: list[Callable[[int], Mapping[str, Tensor]]] = self._of("after_passes", own)
        self.after_update: list[Callable[[int, Mapping[str, Tensor]], None]] = self._of("after_update")
        self.arrived: list[Callable[[int, Mapping[str, float]], Mapping[str, float]]] = self._of("arrived")
        self._waits: list[Callable[[int], bool]] = self._of("waits")

    def _of(self, moment: str, names: Iterable[str] | None = None) -> list[Any]:
        among = self.named.keys() if names is None else set(names)
        return [getattr(c, moment) for n, c in self.named.items() if n in among and overridden(c, moment)]

    def waits(self, step: int) -> bool:
        """Whether one of them may act on the weights of `step` only once its loss is known."""
        return any(waits(step) for waits in self._waits)

    def carried(self) -> dict[str, Callback]:
        """Those that have a state, by name."""
        return {name: c for name, c in self.named.items() if overridden(c, "state")}


def add_to(numbers: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Adds the scalars of a callback. UserError where one is none, or would stand for another number of the step."""
    if not isinstance(more, Mapping) or any(not hasattr(of, "ndim") or of.ndim for of in more.values()):
        raise UserError(f"after_passes of a callback gives {more}: expected scalar tensors by name, or an empty dict")
    if taken := (numbers.keys() | {"grad_norm", "bad", "objective"}) & more.keys():
        raise UserError(f"a callback gives {min(taken)}, which is another number already; choose another name")
    numbers |= more
