"""EMA: the exponential moving average, with several ways to write its decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.averaging.model import ModelAverager, described
from lawa_exp.averaging.settings import ExponentialSettings, from_start, short
from lawa_exp.config.rules import Rule, boolean, integer, number, setting, steps

if TYPE_CHECKING:
    from torch import nn

HALF_LIFE, WINDOW = "half_life:", "lawa:"  # the forms of `decay` that are not a number


def parse_decay(value: Any) -> float | str:
    """A number, or text in one of the two forms, without what does not matter. ValueError or TypeError for others."""
    if not isinstance(value, str):
        return number(low=0, high=1).parse(value)
    text = value.strip()
    if text.startswith(WINDOW):
        return f"{WINDOW}{integer(1).parse(int(text.removeprefix(WINDOW)))}"
    if text.startswith(HALF_LIFE):
        amount = text.removeprefix(HALF_LIFE)
        percent = amount.endswith("%")
        parsed = number(above=0, high=100 if percent else None).parse(amount.removesuffix("%"))
        return f"{HALF_LIFE}{short(parsed)}" + ("%" if percent else "")
    return number(low=0, high=1).parse(text)


DECAY = Rule(
    "a number, at least 0 and at most 1, half_life:STEPS, half_life:PERCENT% (of the age) or lawa:K", parse_decay
)


@dataclass(frozen=True)
class EmaSettings(ExponentialSettings):
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
    decay: float | str = setting(
        DECAY,
        "how much of the average an observation keeps: a number below 1, half_life:STEPS, half_life:SHARE% or lawa:K",
        default=0.99,
    )
    every: int = setting(steps(1), "steps between two observations of the weights", default=1)
    start: int = setting(steps(), "the first step that is observed", default=0)
    warmup: bool = setting(boolean(), "shorten the memory of early averages, as ema-pytorch and timm do", default=False)

    @property
    def id(self) -> str:
        return f"ema-{self._decay_id()}-e{self.every}" + ("-warmup" if self.warmup else "") + from_start(self.start)

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


class Ema(ModelAverager):
    __doc__ = described(EmaSettings)

    def __init__(
        self,
        model: nn.Module,
        decay: float | str = EmaSettings.decay,
        every: int = EmaSettings.every,
        start: int = EmaSettings.start,
        warmup: bool = EmaSettings.warmup,
    ) -> None:
        super().__init__(model, EmaSettings(decay, every, start, warmup))
