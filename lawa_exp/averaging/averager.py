"""The state of one average along a training: what every averager can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from lawa_exp.averaging.settings import AveragerSettings
    from lawa_exp.averaging.window import Window

SLOT = "|"  # between a slot and a tensor's name, in the names of `Averager.state`


class Averager(Protocol):
    """Observes the weights of a training after its steps, and gives their average.

    Steps count optimizer updates completed, so the first is 1. Tensors go by the names of the model's state dict, as
    `tensors.live_tensors` gives them: whole, or this rank's shards. Those in `averaged` are averaged, all others are as
    they were at the last observation. Ranks do not wait for each other.
    """

    @property
    def settings(self) -> AveragerSettings: ...

    @property
    def averaged(self) -> frozenset[str]:
        """The names of the averaged tensors."""
        ...

    @property
    def step(self) -> int:
        """That of the last observation, of a window that of the last update; 0 before."""
        ...

    @property
    def defined(self) -> bool:
        """Whether enough was observed for an average."""
        ...

    def update(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Observes the live `tensors` after `step`, if its settings say so. It keeps copies, never an alias.

        Steps must increase. Where the settings do not observe `step`, `tensors` may be empty.
        """
        ...

    def average(self) -> dict[str, Tensor] | None:
        """New tensors in the weights' own dtype and of their shapes; None while it is not defined."""
        ...

    def statistics(self) -> dict[str, Tensor]:
        """BatchNorm's running statistics, averaged as the weights are; `average` has the latest.

        Only once it is defined. `Failed` where it was loaded from a state that holds none.
        """
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `load` takes: its own tensors (no copies) and values that JSON can hold. A window is not in it."""
        ...

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Goes on from a `state`; `tensors` are its own from here on, and on the device of the weights."""
        ...


def build_averager(
    settings: AveragerSettings, averaged: frozenset[str], window: Window, statistics: frozenset[str] = frozenset()
) -> Averager:
    """A new averager. averaged: the names of the averaged tensors; all others are taken as they were last.

    window: where those of the latest k snapshots read them. statistics: the names of BatchNorm's statistics, which its
    method of that name averages as well.
    """
    return settings.build(averaged, window, statistics)
