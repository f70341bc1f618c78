"""BEMA: an EMA that is corrected for where it started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.averaging.model import ModelAverager, described
from lawa_exp.averaging.settings import ExponentialSettings, from_start, short
from lawa_exp.config.rules import number, setting, steps

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class BemaSettings(ExponentialSettings):
    """Bias-corrected EMA (Block and Zhang 2025, algorithm 1): e + a_t * (theta_t - theta_0).

    e <- (1 - b_t) * e + b_t * theta_t with b_t = (lag + t)^-ema_power and a_t = (lag + t)^-bias_power; theta_0 are the
    first observed weights, and e starts as them. Defaults as in TRL's BEMACallback, where theta_0 are the initial
    weights unless `update_after` says otherwise.
    """

    kind: ClassVar[str] = "bema"
    slots: ClassVar[tuple[str, ...]] = ("mean", "first", "last")
    every: int = setting(steps(1), "steps between two observations of the weights", default=400)
    start: int = setting(steps(), "the first step that is observed", default=0)
    ema_power: float = setting(number(low=0, high=1), "power of the decay of the averaging weight", default=0.5)
    bias_power: float = setting(number(low=0, high=1), "power of the decay of the bias correction", default=0.2)
    lag: float = setting(number(low=0), "steps added to t in both powers", default=10)

    @property
    def id(self) -> str:
        powers = f"p{short(self.ema_power)}-b{short(self.bias_power)}-l{short(self.lag)}"
        return f"bema-e{self.every}-{powers}" + from_start(self.start)

    def old_weight(self, step: int, gap: int, earlier: int) -> float:
        return 1 - float((self.lag + step) ** -self.ema_power)

    def bias_weight(self, step: int) -> float:
        """a_t."""
        return float((self.lag + step) ** -self.bias_power)

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        weights = super().coefficients(steps)
        if len(steps) > 1:
            weights[0] -= self.bias_weight(steps[-1])
            weights[-1] += self.bias_weight(steps[-1])
        return weights

    def accumulate(
        self, running: Mapping[str, list[Tensor]], theta: list[Tensor], step: int, gap: int, earlier: int
    ) -> None:
        import torch

        super().accumulate(running, theta, step, gap, earlier)
        torch._foreach_copy_(running["last"], theta)

    def value(self, running: Mapping[str, Tensor], step: int, count: int) -> Tensor:
        moved = running["last"] - running["first"]
        return running["mean"].add(moved, alpha=self.bias_weight(step))


class Bema(ModelAverager):
    __doc__ = described(BemaSettings)

    def __init__(
        self,
        model: nn.Module,
        every: int = BemaSettings.every,
        start: int = BemaSettings.start,
        ema_power: float = BemaSettings.ema_power,
        bias_power: float = BemaSettings.bias_power,
        lag: float = BemaSettings.lag,
    ) -> None:
        super().__init__(model, BemaSettings(every, start, ema_power, bias_power, lag))
