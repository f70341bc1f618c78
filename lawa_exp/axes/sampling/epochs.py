"""Every sample once an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.sampling.settings import SamplingSettings
from lawa_exp.seams.sampler import Sampler

if TYPE_CHECKING:
    from lawa_exp.seams.context import Context
    from lawa_exp.seams.samples import Samples


@dataclass(frozen=True)
class EpochsSettings(SamplingSettings):
    """Every sample of the training split once an epoch, in an order that follows from the seed and the epoch."""

    absent: ClassVar[bool] = True

    def build(self, context: Context) -> Epochs:
        return Epochs(context)


class Epochs(Sampler):
    def __init__(self, context: Context) -> None:
        self.seed, self.size, self.batches = context.seed, context.data.sizes["train"], context.batches

    def samples(self, step: int) -> Samples:
        from lawa_exp.axes.dataset.order import in_epochs

        return in_epochs(self.batches.samples(step - 1), self.batches.size(step), self.size, self.seed)
