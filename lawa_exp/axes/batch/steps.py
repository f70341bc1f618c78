"""Batch sizes that change after given amounts of data."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.axes.batch.batches import NORM_GROUP, UNITS, BatchSizes, batch_samples
from lawa_exp.config.rules import LARGEST_BATCH, integer, list_of, number, setting
from lawa_exp.seams.batches import Batches
from lawa_exp.system.errors import UserError


@dataclass(frozen=True)
class StepsBatch(BatchSizes):
    """`size`, then `sizes` from the first update after each of `at` (in `unit`) was seen (Smith et al. 2018)."""

    size: int = setting(integer(1, LARGEST_BATCH), "samples in the first update")
    sizes: tuple[int, ...] = setting(list_of(integer(1)), "the later batch sizes, in order")
    at: tuple[float, ...] = setting(
        list_of(number(above=0)), "how much data was seen when each of `sizes` begins, in `unit`"
    )
    unit: str = setting(UNITS, "unit of `at`")
    norm_group: int | None = setting(
        NORM_GROUP, "samples that share BatchNorm statistics; null: those of one forward pass of a rank", before=None
    )

    def __post_init__(self) -> None:
        if len(self.at) != len(self.sizes):
            raise UserError(f"at={list(self.at)}: expected as many as sizes={list(self.sizes)}")
        if list(self.at) != sorted(set(self.at)):
            raise UserError(f"at={list(self.at)}: expected ascending amounts")

    def batches(self, tokens_per_sample: int, samples_per_epoch: int) -> Batches:
        thresholds = [batch_samples(a, self.unit, tokens_per_sample, samples_per_epoch) for a in self.at]
        return Batches([(0, self.size), *zip(thresholds, self.sizes, strict=True)], tokens_per_sample)
