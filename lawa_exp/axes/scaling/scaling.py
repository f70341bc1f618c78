"""How the learning rate follows the batch size: a factor on the schedule's rate, 1 at the base batch."""

from __future__ import annotations

from lawa_exp.axes.choice import Choice
from lawa_exp.config.rules import one_of

SEQUENCE = 4096  # tokens: the Power Scheduler counts its batch in sequences of so many
WARMUP = one_of("steps", "samples")  # what of a warm-up given in steps is the same at another batch size


class Scaling(Choice):
    """The settings of a scaling: `factor` is 1 at the base batch."""

    base_batch: int
    warmup: str  # one of WARMUP

    def base_samples(self, tokens_per_sample: int) -> float:
        """The base batch in samples."""
        return self.base_batch

    def factor(self, size: int, tokens_per_sample: int) -> float:
        """What the rate of an update of `size` samples is multiplied by."""
        raise NotImplementedError
