"""The averagers: a name, a typed dataclass and a class for each; torch is imported only when one is built.

Observed steps are t >= start with t % every == 0 (t % spacing for windows); step 0 never is.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.config import integer, number, setting, steps

if TYPE_CHECKING:
    from lawa_exp.averaging.window import Window


@dataclass(frozen=True)
class LawaSettings:
    """Plain mean of the latest k snapshots at multiples of spacing (Kaddour 2022, algorithm 1)."""

    kind: ClassVar[str] = "lawa"
    windowed: ClassVar[bool] = True  # reads the run's window of snapshots
    copies: ClassVar[int] = 0  # float32 copies of the weights that it holds itself
    k: int = setting(integer(1))
    spacing: int | str = setting(steps(1))
    start: int | str = setting(steps())

    @property
    def id(self) -> str:
        return f"lawa-k{self.k}-s{self.spacing}" + _start(self.start)

    @property
    def period(self) -> int:
        """Steps between two observations."""
        return int(self.spacing)

    @property
    def observations(self) -> int:
        """Observations that make it defined."""
        return self.k

    def needed(self, step: int) -> Sequence[int]:
        """The window after `step`, oldest first: at most k steps."""
        return observed_steps(self, step)[-self.k :]


@dataclass(frozen=True)
class EmaSettings:
    """Exponential moving average: e <- e + (1 - decay) * (theta - e) at each observed step."""

    kind: ClassVar[str] = "ema"
    windowed: ClassVar[bool] = False
    copies: ClassVar[int] = 1
    decay: float = setting(number(low=0, high=1))
    every: int | str = setting(steps(1))
    start: int | str = setting(steps())

    @property
    def id(self) -> str:
        return f"ema-d{self.decay!r}-e{self.every}" + _start(self.start)

    @property
    def period(self) -> int:
        return int(self.every)

    @property
    def observations(self) -> int:
        return 1

    def needed(self, step: int) -> Sequence[int]:
        """Every observed step up to `step`."""
        return observed_steps(self, step)


@dataclass(frozen=True)
class SwaSettings:
    """Plain mean of all observed weights (Izmailov et al. 2018)."""

    kind: ClassVar[str] = "swa"
    windowed: ClassVar[bool] = False
    copies: ClassVar[int] = 2
    every: int | str = setting(steps(1))
    start: int | str = setting(steps())

    @property
    def id(self) -> str:
        return f"swa-e{self.every}" + _start(self.start)

    @property
    def period(self) -> int:
        return int(self.every)

    @property
    def observations(self) -> int:
        return 1

    def needed(self, step: int) -> Sequence[int]:
        """Every observed step up to `step`."""
        return observed_steps(self, step)


AVERAGERS: dict[str, tuple[type, str]] = {
    "lawa": (LawaSettings, "lawa_exp.averaging.lawa:Lawa"),
    "ema": (EmaSettings, "lawa_exp.averaging.ema:Ema"),
    "swa": (SwaSettings, "lawa_exp.averaging.swa:Swa"),
}


def build_averager(settings: Any, averaged: frozenset[str], window: Window) -> Any:
    """The averager for `settings`. averaged: names of the averaged tensors; the rest is taken as it was last."""
    module, name = AVERAGERS[settings.kind][1].split(":")
    return getattr(importlib.import_module(module), name)(settings, averaged, window)


def observes(settings: Any, step: int) -> bool:
    """Whether an averager with these (resolved) settings observes `step`."""
    return step > 0 and step >= settings.start and step % settings.period == 0


def observed_steps(settings: Any, step: int) -> Sequence[int]:
    """The steps up to `step` that an averager with these (resolved) settings observes, ascending."""
    period = settings.period
    first = max(1, -(-int(settings.start) // period))
    return range(first * period, step + 1, period)


def row_fields(settings: Any) -> dict[str, Any]:
    """How an average is named in a row of metrics.jsonl."""
    return {"weights": settings.id, "averager": settings.kind, **dataclasses.asdict(settings)}


def _start(start: int | str) -> str:
    return f"-from{start}" if start else ""
