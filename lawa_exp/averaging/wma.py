"""WMA: the weighted mean of the latest k snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.averaging.model import ModelAverager, described
from lawa_exp.averaging.settings import WindowSettings

if TYPE_CHECKING:
    from torch import nn

    from lawa_exp.averaging.window import Window


class WmaSettings(WindowSettings):
    """Weights 1..k over the LAWA window, the newest heaviest, divided by k(k+1)/2 (WMA of Li et al. 2025, PMA)."""

    kind: ClassVar[str] = "wma"

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        return [float(i) for i in range(1, min(self.k, len(steps)) + 1)]


class Wma(ModelAverager):
    __doc__ = described(WmaSettings)

    def __init__(
        self,
        model: nn.Module,
        k: int = WmaSettings.k,
        spacing: int = WmaSettings.spacing,
        start: int = WmaSettings.start,
        window: Window | None = None,
    ) -> None:
        super().__init__(model, WmaSettings(k, spacing, start), window)
