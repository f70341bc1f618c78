"""The order of the training samples, and their random numbers: pure functions of (seed, number of the sample), with no
state to save."""

from __future__ import annotations

import numpy as np

from lawa_exp.seams.samples import Samples
from lawa_exp.system.hashing import hash_of, splitmix64

ROUNDS = 8
NOISE = 4  # what random numbers are for, beside the purposes in `images.py`


def permuted(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a pseudo-random permutation of range(size), chosen by `key`, sends each index (int64 in, int64 out).

    A Feistel network on the next power of four, walked until it lands inside (Black and Rogaway 2002): no memory.
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [hash_of(key, r) for r in range(ROUNDS)]

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for k in keys:
            left, right = right, left ^ (splitmix64(right ^ k) & mask)
        return (left << half) | right

    x = once(index.astype(np.uint64))
    while (outside := x >= np.uint64(size)).any():
        x[outside] = once(x[outside])
    return x.astype(np.int64)


def in_epochs(first: int, count: int, size: int, seed: int) -> Samples:
    """The samples number first .. first+count-1 of a training that visits every one of `size` samples once an epoch,
    in an order that is the epoch's own."""
    numbers = np.arange(first, first + count, dtype=np.int64)
    epochs, places = numbers // size, numbers % size
    indices = np.empty_like(places)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        of_epoch = epochs == epoch
        indices[of_epoch] = permuted(places[of_epoch], size, int(hash_of(seed, epoch)))
    return Samples(numbers, indices)
