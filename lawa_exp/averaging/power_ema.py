"""Power EMA: an EMA whose memory is a share of its age."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.averaging.model import ModelAverager, described
from lawa_exp.averaging.power import exponent
from lawa_exp.averaging.settings import ExponentialSettings
from lawa_exp.config.rules import number, setting, steps

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PowerEmaSettings(ExponentialSettings):
    """EMA whose memory grows with its age: d = (1 - every/t)^(g+1) (Karras et al. 2024, EDM2, equation 127).

    sigma_rel: the standard deviation of its profile as a share of t; g follows from it (`power.exponent`). Without a
    start: at the first observation d = 0. Any other width can be rebuilt from two that were tracked (`power.py`).
    """

    kind: ClassVar[str] = "power_ema"
    keeps_all: ClassVar[bool] = True  # other widths are rebuilt from them
    sigma_rel: float = setting(
        number(above=0, high=0.28),
        "width of the average's profile, as a share of the step (Karras et al. 2024)",
        default=0.1,
    )
    every: int = setting(steps(1), "steps between two observations of the weights", default=1)

    @property
    def id(self) -> str:
        return f"power_ema-w{self.sigma_rel!r}-e{self.every}"

    def old_weight(self, step: int, gap: int, earlier: int) -> float:
        return float((1 - gap / step) ** (exponent(self.sigma_rel) + 1))


class PowerEma(ModelAverager):
    __doc__ = described(PowerEmaSettings)

    def __init__(
        self, model: nn.Module, sigma_rel: float = PowerEmaSettings.sigma_rel, every: int = PowerEmaSettings.every
    ) -> None:
        super().__init__(model, PowerEmaSettings(sigma_rel, every))
