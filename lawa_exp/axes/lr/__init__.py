"""Learning-rate schedules: a name and a typed dataclass for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.lr.schedule import Schedule

SCHEDULES: Table[Schedule] = Table(
    __name__,
    constant="constant:Constant",
    cosine="cosine:Cosine",
    polynomial="polynomial:Polynomial",
    step="step:Steps",
    wsd="wsd:WSD",
    inverse_sqrt="inverse_sqrt:InverseSqrt",
    power="power:Power",
    on_the_fly="on_the_fly:OnTheFly",
    custom="custom:Custom",
)
