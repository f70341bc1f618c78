"""LAWA: the plain mean of the latest k snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.averaging.model import ModelAverager, described
from lawa_exp.averaging.settings import WindowSettings

if TYPE_CHECKING:
    from torch import nn

    from lawa_exp.averaging.window import Window


class LawaSettings(WindowSettings):
    """Plain mean of the latest k snapshots at multiples of spacing (Kaddour 2022, algorithm 1).

    With m = floor(t / spacing): (1/k) * sum over j = m-k+1 .. m of theta(j * spacing), where every j * spacing is at
    least max(1, start); undefined before k of them exist.
    """

    kind: ClassVar[str] = "lawa"

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        return [1.0] * min(self.k, len(steps))


class Lawa(ModelAverager):
    __doc__ = described(LawaSettings)

    def __init__(
        self,
        model: nn.Module,
        k: int = LawaSettings.k,
        spacing: int = LawaSettings.spacing,
        start: int = LawaSettings.start,
        window: Window | None = None,
    ) -> None:
        super().__init__(model, LawaSettings(k, spacing, start), window)
