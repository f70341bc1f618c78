"""CRC-32 of bytes that several processes wrote, from those of the pieces (zlib's crc32_combine).

A CRC is a polynomial over GF(2) modulo the generator, its bits reflected: the highest bit is the coefficient of x^0.
Appending n bytes multiplies it by x^(8 n).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache

GENERATOR = 0xEDB88320  # reflected, without x^32
ONE = 1 << 31


def combined(pieces: Iterable[tuple[int, int]]) -> int:
    """Of (CRC-32, bytes) of pieces in their order: the CRC-32 of all of it."""
    total = 0
    for crc, size in pieces:
        total = _product(_power(8 * size), total) ^ crc
    return total


def _product(a: int, b: int) -> int:
    result = 0
    while a:
        if a & ONE:
            result ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (GENERATOR if b & 1 else 0)
    return result


@lru_cache(maxsize=4096)
def _power(n: int) -> int:
    """x^n."""
    result = ONE
    for i in range(n.bit_length()):
        if n >> i & 1:
            result = _product(_square(i), result)
    return result


@cache
def _square(i: int) -> int:
    """x^(2^i)."""
    return ONE >> 1 if i == 0 else _product(_square(i - 1), _square(i - 1))
