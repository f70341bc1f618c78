"""Random numbers that follow from integers, with no state to save."""

from __future__ import annotations

import functools

import numpy as np


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Steele et al. 2014: a good 64-bit hash of 64-bit integers, elementwise; uint64 in, uint64 out."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = x ^ (x >> np.uint64(31))
        return mixed


@functools.lru_cache(maxsize=4096)  # the keys of an epoch's order are asked for at every batch
def hash_of(*numbers: int) -> np.uint64:
    """One 64-bit hash of several integers, their order included."""
    state = np.zeros(1, np.uint64)
    for n in numbers:
        state = splitmix64(state ^ np.uint64(n % 2**64))
    hashed: np.uint64 = state[0]
    return hashed


def keys_of(seed: int, purpose: int, numbers: np.ndarray) -> np.ndarray:
    """A 64-bit key for each sample number (any integers in, uint64 out): its random numbers for `purpose` follow."""
    return splitmix64(numbers.astype(np.uint64) ^ hash_of(seed, 0, 0, purpose))


def uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) from each key: float64 [len(keys), count]."""
    bits = splitmix64(keys[:, None] ^ splitmix64(np.arange(count, dtype=np.uint64)))
    return (bits >> np.uint64(11)) * 2.0**-53
