"""What each averager is: a name, a typed dataclass with its closed form, and the class that keeps its state.

Observed steps are t >= start with t % every == 0 (t % spacing for windows); step 0 never is. Every average here is a
weighted mean of observed weights, and `coefficients` gives the weights: the closed form, and what averages files.
Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.config.rules import Rule, boolean, integer, number, setting, steps

if TYPE_CHECKING:
    from lawa_exp.averaging.window import Window


class _Windowed:
    """What the averagers of the latest k snapshots share."""

    kind: ClassVar[str]
    windowed: ClassVar[bool] = True  # reads the run's window of snapshots
    copies: ClassVar[int] = 0  # float32 copies of the weights that it holds itself
    keeps_all: ClassVar[bool] = False  # whether the averages of all evaluated steps are kept, or those of the last
    k: int
    spacing: int | str
    start: int | str

    @property
    def id(self) -> str:
        return f"{self.kind}-k{self.k}-s{self.spacing}" + _start(self.start)

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
class LawaSettings(_Windowed):
    """Plain mean of the latest k snapshots at multiples of spacing (Kaddour 2022, algorithm 1).

    With m = floor(t / spacing): (1/k) * sum over j = m-k+1 .. m of theta(j * spacing), where every j * spacing is at
    least max(1, start); undefined before k of them exist.
    """

    kind: ClassVar[str] = "lawa"
    k: int = setting(integer(1))
    spacing: int | str = setting(steps(1))
    start: int | str = setting(steps())

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        """Weights of the latest of the observed `steps` (as many as there are weights), in step order.

        The average after the last of `steps` is sum(weight * theta) / sum(weights).
        """
        return [1.0] * min(self.k, len(steps))


@dataclass(frozen=True)
class WmaSettings(_Windowed):
    """Weights 1..k over the LAWA window, the newest heaviest, divided by k(k+1)/2 (WMA of Li et al. 2025, PMA)."""

    kind: ClassVar[str] = "wma"
    k: int = setting(integer(1))
    spacing: int | str = setting(steps(1))
    start: int | str = setting(steps())

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        return [float(i) for i in range(1, min(self.k, len(steps)) + 1)]


class _Running:
    """What the averagers of all observed weights share."""

    kind: ClassVar[str]
    windowed: ClassVar[bool] = False
    copies: ClassVar[int] = 1
    keeps_all: ClassVar[bool] = False
    every: int | str

    @property
    def period(self) -> int:
        return int(self.every)

    @property
    def observations(self) -> int:
        return 1

    def needed(self, step: int) -> Sequence[int]:
        """Every observed step up to `step`."""
        return observed_steps(self, step)


class _Exponential(_Running):
    """e starts as the first observed weights, then e <- d * e + (1 - d) * theta with d = old_weight(...)."""

    def old_weight(self, step: int, gap: int, earlier: int) -> float:
        """How much of the old average is left. gap: steps since the last observation; earlier: observations before."""
        raise NotImplementedError

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        weights, left = [0.0] * len(steps), 1.0
        for i in range(len(steps) - 1, 0, -1):
            old = self.old_weight(steps[i], steps[i] - steps[i - 1], i)
            weights[i] = left * (1 - old)
            left *= old
        return [left, *weights[1:]]


HALF_LIFE, WINDOW = "half_life:", "lawa:"  # the forms of `decay` that are not a number


def _parse_decay(value: Any) -> float | str:
    if not isinstance(value, str):
        return number(low=0, high=1).parse(value)
    text = value.strip()
    if text.startswith(WINDOW):
        return f"{WINDOW}{integer(1).parse(int(text.removeprefix(WINDOW)))}"
    if text.startswith(HALF_LIFE):
        amount = text.removeprefix(HALF_LIFE)
        percent = amount.endswith("%")
        parsed = number(above=0, high=100 if percent else None).parse(amount.removesuffix("%"))
        return f"{HALF_LIFE}{_short(parsed)}" + ("%" if percent else "")
    return number(low=0, high=1).parse(text)


DECAY = Rule(
    "a number, at least 0 and at most 1, half_life:STEPS, half_life:PERCENT% (of the age) or lawa:K", _parse_decay
)


@dataclass(frozen=True)
class EmaSettings(_Exponential):
    """Exponential moving average: e starts as the first observed weights, then e <- e + (1 - d) * (theta - e).

    With a constant d, after observations theta_0 .. theta_n: d^n theta_0 + sum over i = 1..n of (1-d) d^(n-i) theta_i.
    decay, for an observation at step t:
        0.99           d itself
        half_life:100  d = 2^(-every/100): a weight counts half after 100 steps
        half_life:4%   d = 2^(-every/(0.04 t)): half after 4% of the age (Meterez et al. 2026, f = 1/0.04 = 25)
        lawa:5         d = (5-1)/(5+1): the mean age of a LAWA window of k=5 at spacing `every` (Ajroldi et al. 2025)
    warmup: at the n-th observation after the first, d is at most 1 - (1+n)^(-2/3), which at every=1 is
    the warm-up of ema-pytorch and timm.
    """

    kind: ClassVar[str] = "ema"
    decay: float | str = setting(DECAY)
    every: int | str = setting(steps(1))
    start: int | str = setting(steps())
    warmup: bool = setting(boolean())

    @property
    def id(self) -> str:
        return f"ema-{self._decay_id()}-e{self.every}" + ("-warmup" if self.warmup else "") + _start(self.start)

    def old_weight(self, step: int, gap: int, earlier: int) -> float:
        decay = self._decay(step, gap)
        return min(decay, 1 - (1 + earlier) ** (-2 / 3)) if self.warmup else decay

    def _decay(self, step: int, gap: int) -> float:
        if not isinstance(self.decay, str):
            return self.decay
        if self.decay.startswith(WINDOW):
            k = int(self.decay.removeprefix(WINDOW))
            return (k - 1) / (k + 1)
        amount = self.decay.removeprefix(HALF_LIFE)
        half_life = float(amount[:-1]) / 100 * step if amount.endswith("%") else float(amount)
        return 2 ** (-gap / half_life)

    def _decay_id(self) -> str:
        if not isinstance(self.decay, str):
            return f"d{self.decay!r}"
        return self.decay.replace(HALF_LIFE, "hl").replace("%", "pct").replace(":", "")


@dataclass(frozen=True)
class PowerEmaSettings(_Exponential):
    """EMA whose memory grows with its age: d = (1 - every/t)^(g+1) (Karras et al. 2024, EDM2, equation 127).

    sigma_rel: the standard deviation of its profile as a share of t; g follows from it (`power.exponent`). Without a
    start: at the first observation d = 0. Any other width can be rebuilt from two that were tracked (`power.py`).
    """

    kind: ClassVar[str] = "power_ema"
    keeps_all: ClassVar[bool] = True  # other widths are rebuilt from them
    sigma_rel: float = setting(number(above=0, high=0.28))
    every: int | str = setting(steps(1))

    @property
    def start(self) -> int:
        return 0

    @property
    def id(self) -> str:
        return f"power_ema-w{self.sigma_rel!r}-e{self.every}"

    def old_weight(self, step: int, gap: int, earlier: int) -> float:
        from lawa_exp.averaging.power import exponent

        return (1 - gap / step) ** (exponent(self.sigma_rel) + 1)


@dataclass(frozen=True)
class SwaSettings(_Running):
    """Plain mean of all observed weights (Izmailov et al. 2018)."""

    kind: ClassVar[str] = "swa"
    copies: ClassVar[int] = 2
    every: int | str = setting(steps(1))
    start: int | str = setting(steps())

    @property
    def id(self) -> str:
        return f"swa-e{self.every}" + _start(self.start)

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        return [1.0] * len(steps)


@dataclass(frozen=True)
class BemaSettings(_Exponential):
    """Bias-corrected EMA (Block and Zhang 2025, algorithm 1): e + a_t * (theta_t - theta_0).

    e <- (1 - b_t) * e + b_t * theta_t with b_t = (lag + t)^-ema_power and a_t = (lag + t)^-bias_power; theta_0 are the
    first observed weights, and e starts as them. Defaults as in TRL's BEMACallback, where theta_0 are the initial
    weights unless `update_after` says otherwise.
    """

    kind: ClassVar[str] = "bema"
    copies: ClassVar[int] = 3
    every: int | str = setting(steps(1))
    start: int | str = setting(steps())
    ema_power: float = setting(number(low=0, high=1))
    bias_power: float = setting(number(low=0, high=1))
    lag: float = setting(number(low=0))

    @property
    def id(self) -> str:
        powers = f"p{_short(self.ema_power)}-b{_short(self.bias_power)}-l{_short(self.lag)}"
        return f"bema-e{self.every}-{powers}" + _start(self.start)

    def old_weight(self, step: int, gap: int, earlier: int) -> float:
        return 1 - (self.lag + step) ** -self.ema_power

    def bias_weight(self, step: int) -> float:
        """a_t."""
        return (self.lag + step) ** -self.bias_power

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        weights = super().coefficients(steps)
        if len(steps) > 1:
            weights[0] -= self.bias_weight(steps[-1])
            weights[-1] += self.bias_weight(steps[-1])
        return weights


AVERAGERS: dict[str, tuple[type, str]] = {
    "lawa": (LawaSettings, "lawa_exp.averaging.windowed:WindowAverage"),
    "wma": (WmaSettings, "lawa_exp.averaging.windowed:WindowAverage"),
    "ema": (EmaSettings, "lawa_exp.averaging.accumulator:ExponentialAverage"),
    "power_ema": (PowerEmaSettings, "lawa_exp.averaging.accumulator:ExponentialAverage"),
    "bema": (BemaSettings, "lawa_exp.averaging.accumulator:BiasCorrected"),
    "swa": (SwaSettings, "lawa_exp.averaging.accumulator:RunningMean"),
}


def build_averager(
    settings: Any, averaged: frozenset[str], window: Window, statistics: frozenset[str] = frozenset()
) -> Any:
    """The averager for `settings`. averaged: names of the averaged tensors; the rest is taken as it was last.

    statistics: names (of BatchNorm's) that are averaged beside, in the same way: see its method `statistics`.
    """
    module, name = AVERAGERS[settings.kind][1].split(":")
    return getattr(importlib.import_module(module), name)(settings, averaged, window, statistics)


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


def _short(value: float) -> str:
    """A float without a trailing `.0`."""
    return repr(value).removesuffix(".0")
