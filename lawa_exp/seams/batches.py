"""The steps, samples and tokens that follow from a batch size that is a function of the samples seen.

A size holds until a number of samples has been seen and changes at the next update: sizes are constant in pieces, and
everything here is a pure function of the step.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

Piece = tuple[float, int]  # (samples seen before it, batch size)


@dataclass(frozen=True)
class Split:
    """How one batch is worked through: `micro` samples a pass, `accumulate` passes on each rank."""

    micro: int
    accumulate: int


class Batches:
    """pieces: ascending, the first at 0. Steps count completed updates; the batch of step t is that of its update."""

    def __init__(self, pieces: Sequence[Piece], tokens_per_sample: int) -> None:
        self.tokens_per_sample = tokens_per_sample
        self.starts: list[int] = []  # steps completed before each piece
        self.before: list[int] = []  # samples seen before each piece
        self.sizes: list[int] = []
        step = samples = 0
        for i, (threshold, size) in enumerate(pieces):
            if i:
                updates = max(0, _up((threshold - samples) / self.sizes[-1]))
                if updates == 0:  # the size before was never used
                    self.starts.pop(), self.before.pop(), self.sizes.pop()
                step, samples = step + updates, samples + updates * pieces[i - 1][1]
            self.starts.append(step)
            self.before.append(samples)
            self.sizes.append(size)

    def size(self, step: int) -> int:
        """Samples in the update that completes `step` (1, 2, ...)."""
        return self.sizes[bisect.bisect_left(self.starts, step) - 1]

    def samples(self, step: int) -> int:
        """Samples seen after `step` updates."""
        piece = max(0, bisect.bisect_left(self.starts, step) - 1)
        return self.before[piece] + (step - self.starts[piece]) * self.sizes[piece]

    def tokens(self, step: int) -> int:
        return self.samples(step) * self.tokens_per_sample

    def seen(self, unit: str, step: int) -> int:
        """What has been seen after `step` updates: steps, samples or tokens."""
        return step if unit == "steps" else {"samples": self.samples, "tokens": self.tokens}[unit](step)

    def steps(self, samples: float) -> int:
        """The first step after which at least so many samples have been seen."""
        piece = max(0, bisect.bisect_left(self.before, samples) - 1)
        return self.starts[piece] + _up((samples - self.before[piece]) / self.sizes[piece])

    def steps_at_end(self, end: int, samples: float) -> int:
        """How many of the last steps up to `end` see at least so many samples."""
        before = self.samples(end) - samples
        step = self.steps(before)
        return end - (step - 1 if self.samples(step) - before > 1e-6 else step)


def _up(amount: float) -> int:
    """To the next integer, unless it is one but for rounding."""
    return math.ceil(round(amount, 6))
