"""Batch sizes from outside."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lawa_exp.axes.batch.batches import NORM_GROUP, BatchSizes
from lawa_exp.config.rules import LARGEST_BATCH, arguments, integer, setting, text
from lawa_exp.seams.batches import Batches


@dataclass(frozen=True)
class CustomBatch(BatchSizes):
    """`builder(size, tokens_per_sample, samples_per_epoch, **args)`, a `seams.batches.Batches`."""

    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()
    size: int = setting(integer(1, LARGEST_BATCH), "samples in one update, over all ranks together")
    norm_group: int | None = setting(
        NORM_GROUP, "samples that share BatchNorm statistics; null: those of one forward pass of a rank", before=None
    )

    @cached_property
    def _built(self) -> dict[tuple[int, int], Batches]:
        return {}

    def batches(self, tokens_per_sample: int, samples_per_epoch: int) -> Batches:
        from lawa_exp.storage import custom

        data = (tokens_per_sample, samples_per_epoch)
        if data not in self._built:
            self._built[data] = custom.made(
                self,
                "batch",
                self.size,
                *data,
                expected="a lawa_exp.seams.batches.Batches of sizes above 0",
                fits=_fits,
            )
        return self._built[data]


def _fits(made: object) -> bool:
    return isinstance(made, Batches) and all(type(size) is int and size > 0 for size in made.sizes)
