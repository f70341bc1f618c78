"""SWA: the plain mean of all observed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.averaging.model import ModelAverager, described
from lawa_exp.averaging.settings import RunningSettings, from_start
from lawa_exp.config.rules import setting, steps

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class SwaSettings(RunningSettings):
    """Plain mean of all observed weights (Izmailov et al. 2018): a float64 sum in step order, divided once."""

    kind: ClassVar[str] = "swa"
    dtype: ClassVar[str] = "float64"
    every: int = setting(steps(1), "steps between two observations of the weights", default=1)
    start: int = setting(steps(), "the first step that is observed", default=0)

    @property
    def id(self) -> str:
        return f"swa-e{self.every}" + from_start(self.start)

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        return [1.0] * len(steps)

    def accumulate(
        self, running: Mapping[str, list[Tensor]], theta: list[Tensor], step: int, gap: int, earlier: int
    ) -> None:
        import torch

        torch._foreach_add_(running["mean"], theta)

    def value(self, running: Mapping[str, Tensor], step: int, count: int) -> Tensor:
        return running["mean"] / count  # the slot has a sum


class Swa(ModelAverager):
    __doc__ = described(SwaSettings)

    def __init__(self, model: nn.Module, every: int = SwaSettings.every, start: int = SwaSettings.start) -> None:
        super().__init__(model, SwaSettings(every, start))
