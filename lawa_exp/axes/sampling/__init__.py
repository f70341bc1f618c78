"""Which samples each update takes: a name and a typed dataclass for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.sampling.settings import SamplingSettings

SAMPLERS: Table[SamplingSettings] = Table(
    __name__,
    epochs="epochs:EpochsSettings",
    custom="custom:CustomSampling",
)
