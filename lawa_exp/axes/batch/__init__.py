"""Batch sizes by step: a name and a typed dataclass for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.batch.batches import BatchSizes

BATCHES: Table[BatchSizes] = Table(
    __name__,
    constant="constant:ConstantBatch",
    steps="steps:StepsBatch",
    ramp="ramp:RampBatch",
    custom="custom:CustomBatch",
)
