"""The same batch size throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.batch.batches import NORM_GROUP, BatchSizes
from lawa_exp.config.rules import LARGEST_BATCH, integer, setting
from lawa_exp.seams.batches import Batches


@dataclass(frozen=True)
class ConstantBatch(BatchSizes):
    """`size` samples in every update, over all ranks together."""

    constant: ClassVar[bool] = True
    size: int = setting(integer(1, LARGEST_BATCH), "samples in one update, over all ranks together")
    norm_group: int | None = setting(
        NORM_GROUP, "samples that share BatchNorm statistics; null: those of one forward pass of a rank", before=None
    )

    def batches(self, tokens_per_sample: int, samples_per_epoch: int) -> Batches:
        return Batches([(0, self.size)], tokens_per_sample)
