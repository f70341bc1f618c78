"""What all averagers' settings have in common; each averager's own are in its file (lawa.py, ema.py, ...).

Observed steps are t >= start with t % every == 0 (t % spacing for windows); step 0 never is. Every average is a
weighted mean of observed weights, and `coefficients` gives the weights: the closed form, and what averages files.
Neither this file nor an averager's own imports torch before there is something to compute.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.config.rules import Amount, integer, key_of, rule_of, setting, steps

if TYPE_CHECKING:
    from torch import Tensor

    from lawa_exp.averaging.averager import Averager
    from lawa_exp.averaging.window import Window


@dataclass(frozen=True)
class AveragerSettings(ABC):
    """What an averager computes. Steps count optimizer updates; the methods expect resolved ones (`1epoch` is none).

    The defaults are those of the class for other people's loops (`Lawa(model)`) and of the commands' flags; conf/avg
    reads them with `!default`.
    """

    kind: ClassVar[str] = ""  # its name in AVERAGERS, in conf/avg and in rows
    windowed: ClassVar[bool]  # whether it reads the run's window of snapshots, or keeps running tensors of its own
    keeps_all: ClassVar[bool] = False  # whether the averages of all evaluated steps are kept, or those of the last

    @property
    @abstractmethod
    def id(self) -> str:
        """Kind, main settings and any other that is not the default, as in `lawa-k5-s1000`."""

    @property
    def start(self) -> int:
        """The first step that may be observed."""
        return 0

    @property
    @abstractmethod
    def period(self) -> int:
        """Steps between two observations."""

    @property
    @abstractmethod
    def observations(self) -> int:
        """How many observations make it defined."""

    @classmethod
    @abstractmethod
    def copies(cls) -> int:
        """How many float32 copies of the weights it keeps, besides the window's snapshots."""

    @abstractmethod
    def build(self, averaged: frozenset[str], window: Window, statistics: frozenset[str]) -> Averager:
        """Its state, as `build_averager` says."""

    @abstractmethod
    def needed(self, step: int) -> Sequence[int]:
        """The steps whose weights the average after `step` is made of, oldest first."""

    @abstractmethod
    def coefficients(self, steps: Sequence[int]) -> list[float]:
        """Weights of the latest of the observed `steps` (as many as there are weights), in step order.

        The average after the last of `steps` is sum(weight * theta) / sum(weights).
        """


MOST_SNAPSHOTS = 1_000_000  # of a window: their numbers alone take time to count


@dataclass(frozen=True)
class WindowSettings(AveragerSettings):
    """Those of an averager of the latest k snapshots at multiples of spacing, undefined before k of them exist."""

    windowed: ClassVar[bool] = True
    k: int = setting(integer(1, MOST_SNAPSHOTS), "snapshots in the window", default=5)
    spacing: int = setting(steps(1), "steps between two snapshots of the window", default=1000)
    start: int = setting(steps(), "the first step that is observed", default=0)

    @property
    def id(self) -> str:
        return f"{self.kind}-k{self.k}-s{self.spacing}" + from_start(self.start)

    @property
    def period(self) -> int:
        return self.spacing

    @property
    def observations(self) -> int:
        return self.k

    @classmethod
    def copies(cls) -> int:
        return 0

    def build(self, averaged: frozenset[str], window: Window, statistics: frozenset[str]) -> Averager:
        from lawa_exp.averaging.windowed import WindowAverage

        return WindowAverage(self, averaged, window, statistics)

    def needed(self, step: int) -> Sequence[int]:
        """The window after `step`, oldest first: at most k steps."""
        return observed_steps(self, step)[-self.k :]


@dataclass(frozen=True)
class RunningSettings(AveragerSettings):
    """Those of an averager of all observed weights, which keeps a few running tensors for each averaged one.

    The running tensors of a slot begin as the first observed weights. `Accumulator` has them, and calls `accumulate`
    and `value`.
    """

    windowed: ClassVar[bool] = False
    slots: ClassVar[tuple[str, ...]] = ("mean",)
    dtype: ClassVar[str] = "float32"  # of the running tensors; or float64

    @property
    @abstractmethod
    def every(self) -> int:
        """Steps between two observations."""

    @property
    def period(self) -> int:
        return self.every

    @property
    def observations(self) -> int:
        return 1

    @classmethod
    def copies(cls) -> int:
        return len(cls.slots) * (2 if cls.dtype == "float64" else 1)

    def build(self, averaged: frozenset[str], window: Window, statistics: frozenset[str]) -> Averager:
        from lawa_exp.averaging.accumulator import Accumulator

        return Accumulator(self, averaged, statistics)

    def needed(self, step: int) -> Sequence[int]:
        """Every observed step up to `step`."""
        return observed_steps(self, step)

    @abstractmethod
    def accumulate(
        self, running: Mapping[str, list[Tensor]], theta: list[Tensor], step: int, gap: int, earlier: int
    ) -> None:
        """Takes the weights `theta` observed after `step` into the `running` tensors of each slot, in place.

        gap: steps since the last observation. earlier: observations before this one, at least 1.
        """

    def value(self, running: Mapping[str, Tensor], step: int, count: int) -> Tensor:
        """The average of one tensor from its `running` ones, by slot, after `count` observations, the last at `step`.

        In `dtype`; it may be a running tensor itself.
        """
        return running["mean"]


@dataclass(frozen=True)
class ExponentialSettings(RunningSettings):
    """e starts as the first observed weights, then e <- e + (1 - d) * (theta - e) with d = old_weight(...)."""

    @abstractmethod
    def old_weight(self, step: int, gap: int, earlier: int) -> float:
        """How much of the old average is left. gap: steps since the last observation; earlier: observations before."""

    def accumulate(
        self, running: Mapping[str, list[Tensor]], theta: list[Tensor], step: int, gap: int, earlier: int
    ) -> None:
        import torch

        old = self.old_weight(step, gap, earlier)
        torch._foreach_lerp_(running["mean"], [t.float() for t in theta], 1 - old)

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        weights, left = [0.0] * len(steps), 1.0
        for i in range(len(steps) - 1, 0, -1):
            old = self.old_weight(steps[i], steps[i] - steps[i - 1], i)
            weights[i] = left * (1 - old)
            left *= old
        return [left, *weights[1:]]


def observes(settings: AveragerSettings, step: int) -> bool:
    """Whether an averager with these (resolved) settings observes `step`."""
    return step > 0 and step >= settings.start and step % settings.period == 0


def observed_steps(settings: AveragerSettings, step: int) -> Sequence[int]:
    """The steps up to `step` that an averager with these (resolved) settings observes, ascending."""
    period = settings.period
    first = max(1, -(-settings.start // period))
    return range(first * period, step + 1, period)


def row_fields(settings: AveragerSettings) -> dict[str, object]:
    """How an average is named in a row of metrics.jsonl."""
    return {"weights": settings.id, "averager": settings.kind, **dataclasses.asdict(settings)}


def unresolved(cls: type[AveragerSettings], values: Mapping[str, Any]) -> str | None:
    """`spacing=1epoch`: the first of these settings that only a training can resolve; None where there is none."""
    for field in dataclasses.fields(cls):
        value, rule = values.get(key_of(field)), rule_of(field)
        with suppress(ValueError, TypeError):  # what is wrong otherwise, `build` refuses
            if rule.written and isinstance(rule.read(value), Amount):
                return f"{key_of(field)}={value}"
    return None


def from_start(start: int) -> str:
    """The end of an id."""
    return f"-from{start}" if start else ""


def short(value: float) -> str:
    """A float without a trailing `.0`."""
    return repr(value).removesuffix(".0")
