"""What the batch size does to the rate: a name and a typed dataclass for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.scaling.scaling import Scaling

SCALINGS: Table[Scaling] = Table(
    __name__,
    none="none:NoScaling",
    linear="linear:Linear",
    sqrt="sqrt:SquareRoot",
    capped="capped:Capped",
    power="power:PowerScaling",
    custom="custom:CustomScaling",
)
