"""The sum of a window that slides: the last one goes on, less the oldest value, plus the newest, where that is exact.

A float64 sum of floats of 32 bits or fewer is exact, in whatever order, as long as the values' exponents are near to
each other: k values below 2^high, all multiples of 2^low, need high - low + log2(k) <= 53. That is looked at for each
chunk and holds for most; where it does not, the sum is made afresh in step order. The bytes are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lawa_exp.formats.dtypes import Floats, decode
from lawa_exp.formats.stored import Average

SHORTEST = 4  # k from which it pays
LAYOUT: dict[str, tuple[type[np.uint32 | np.uint16], int]] = {  # an unsigned integer of that size, bits of the mantissa
    "float32": (np.uint32, 23),
    "float16": (np.uint16, 10),
    "bfloat16": (np.uint16, 7),
}


def window_of(averages: Sequence[Average]) -> int | None:
    """k, where these are plain means of k inputs each, and each begins one input after the one before; else None."""
    k = len(averages[0].inputs)
    inputs = sorted({i for a in averages for i in a.inputs})
    windows = [tuple(inputs[j : j + k]) for j in range(len(inputs) - k + 1)]
    if k < SHORTEST or windows != [a.inputs for a in averages] or any(w != 1 for a in averages for w in a.weights):
        return None
    return k


class SlidingSum:
    """ring: [k, n] and total: [n] are memory for the latest k values and their sum; scratch: bytes, of n values."""

    def __init__(self, ring: Floats, total: Floats, dtype: str, scratch: NDArray[np.uint8]) -> None:
        self.ring, self.total, self.dtype, self.scratch = ring, total, dtype, scratch
        self.lows: list[float] = []  # of the latest k+1: see `spread`
        self.highs: list[float] = []
        self.number = 0

    def push(self, raw: NDArray[np.uint8]) -> None:
        """Takes in the next input; `total` is then the sum of the latest k, once there are so many."""
        k = len(self.ring)
        newest, self.number = self.ring[self.number % k], self.number + 1  # until now the oldest of k+1
        low, high = spread(raw, self.dtype, self.scratch)
        self.lows, self.highs = [*self.lows[-k:], low], [*self.highs[-k:], high]
        if self.number > k and self._exact():
            np.subtract(self.total, newest, out=self.total)
            np.add(self.total, self._decoded(raw, newest), out=self.total)
            return
        self._decoded(raw, newest)
        if self.number >= k:
            np.copyto(self.total, self.ring[self.number % k])
            for i in range(1, k):
                np.add(self.total, self.ring[(self.number + i) % k], out=self.total)

    def _decoded(self, raw: NDArray[np.uint8], out: Floats) -> Floats:
        values = decode(raw, self.dtype, out)
        if values is not out:
            np.copyto(out, values)
        return out

    @property
    def finite(self) -> bool:
        """Whether all values surely are."""
        return max(self.highs) < math.inf

    def _exact(self) -> bool:
        """Whether every sum of the latest k+1 values is."""
        return max(self.highs) - min(self.lows) + len(self.ring).bit_length() <= 53


def spread(raw: NDArray[np.uint8], dtype: str, scratch: NDArray[np.uint8]) -> tuple[float, float]:
    """(low, high): all values are multiples of 2^low and smaller than 2^high, but for one offset.

    high is infinite where that is not to be relied on: NaN, infinity, -0 (whose sign a sum that goes on would lose).
    """
    unsigned, mantissa = LAYOUT[dtype]
    bits = raw.view(unsigned)
    sign = 1 << (8 * bits.itemsize - 1)
    magnitude = np.bitwise_and(bits, unsigned(sign - 1), out=scratch[: len(raw)].view(unsigned))
    largest, smallest = int(magnitude.max()), int(magnitude.min())
    if largest >> mantissa == (sign - 1) >> mantissa:
        return 0, math.inf
    if smallest == 0:
        if (bits == sign).any():
            return 0, math.inf
        magnitude -= unsigned(1)  # 0 becomes the largest of all
        smallest = min(int(magnitude.min()) + 1, largest)
    return max(smallest >> mantissa, 1) - mantissa, max(largest >> mantissa, 1) + 1
