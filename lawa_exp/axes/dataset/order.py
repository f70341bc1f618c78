"""The order of the training samples, and their random numbers: pure functions of (seed, number of the sample), with no
state to save."""

from __future__ import annotations

import functools

import numpy as np

ROUNDS = 8
NOISE = 4  # what random numbers are for, beside the purposes in `images.py`


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Steele et al. 2014: a good 64-bit hash of 64-bit integers, elementwise; uint64 in, uint64 out."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = x ^ (x >> np.uint64(31))
        return mixed


@functools.lru_cache(maxsize=64)  # the keys of an epoch's order are asked for at every batch
def hash_of(*numbers: int) -> np.uint64:
    """One 64-bit hash of several integers, their order included."""
    state = np.zeros(1, np.uint64)
    for n in numbers:
        state = splitmix64(state ^ np.uint64(n % 2**64))
    hashed: np.uint64 = state[0]
    return hashed


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


def epochs_and_indices(first: int, count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For the samples number first .. first+count-1 of the training: their epoch and their place in the data set.

    Each epoch visits every one of `size` samples once, in an order of its own.
    """
    number = np.arange(first, first + count, dtype=np.int64)
    epochs, places = number // size, number % size
    indices = np.empty_like(places)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        of_epoch = epochs == epoch
        indices[of_epoch] = permuted(places[of_epoch], size, int(hash_of(seed, epoch)))
    return epochs, indices


def keys_of(seed: int, purpose: int, numbers: np.ndarray) -> np.ndarray:
    """A 64-bit key for each sample number (uint64 in and out), from which its random numbers for `purpose` follow."""
    return splitmix64(numbers ^ hash_of(seed, 0, 0, purpose))


def uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) from each key: float64 [len(keys), count]."""
    bits = splitmix64(keys[:, None] ^ splitmix64(np.arange(count, dtype=np.uint64)))
    return (bits >> np.uint64(11)) * 2.0**-53
