"""A batch that grows."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.axes.batch.batches import NORM_GROUP, UNITS, BatchSizes, batch_samples
from lawa_exp.config.rules import LARGEST_BATCH, integer, number, setting
from lawa_exp.seams.batches import Batches
from lawa_exp.system.errors import UserError


@dataclass(frozen=True)
class RampBatch(BatchSizes):
    """From `first` to `size` in increments, evenly over the first `over` (in `unit`), as Megatron-LM's ramp-up."""

    first: int = setting(integer(1), "samples in the first update")
    size: int = setting(integer(1, LARGEST_BATCH), "samples in an update after the ramp")
    increment: int = setting(integer(1), "samples that each stage of the ramp adds")
    over: float = setting(number(above=0), "how much data the ramp takes, in `unit`")
    unit: str = setting(UNITS, "unit of `over`")
    norm_group: int | None = setting(
        NORM_GROUP, "samples that share BatchNorm statistics; null: those of one forward pass of a rank", before=None
    )

    def __post_init__(self) -> None:
        if self.size <= self.first or (self.size - self.first) % self.increment:
            raise UserError(f"increment={self.increment}: expected steps that lead from {self.first} up to {self.size}")

    def batches(self, tokens_per_sample: int, samples_per_epoch: int) -> Batches:
        rises = (self.size - self.first) // self.increment
        over = batch_samples(self.over, self.unit, tokens_per_sample, samples_per_epoch)
        pieces = [(over * i / rises, self.first + i * self.increment) for i in range(rises + 1)]
        return Batches(pieces, tokens_per_sample)
