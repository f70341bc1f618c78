"""Element types by torch's names: to float64 exactly, and from float64 with one rounding, to the nearest, ties to even.

numpy has no bfloat16 and no float8; their bits are handled here. Sizes are in bytes, arrays are 1-D.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

FLOATS = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
}
INTEGERS = {
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}
OPAQUE = {  # no mean of these is made; equal in all inputs they are copied
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
}
SIZES = FLOATS | INTEGERS | OPAQUE
NATIVE = {"float64": np.float64, "float32": np.float32, "float16": np.float16}
F8 = {  # mantissa bits, exponent bias, magnitudes that are finite numbers (codes 0 .. n-1), whether -0 exists
    "float8_e4m3fn": (3, 7, 127, True),
    "float8_e5m2": (2, 15, 124, True),
    "float8_e4m3fnuz": (3, 8, 128, False),
    "float8_e5m2fnuz": (2, 16, 128, False),
}

Floats = NDArray[np.float64]


def decode(raw: NDArray[np.uint8], dtype: str, out: Floats) -> Floats:
    """The values of `raw` (elements of `dtype`) as float64: in `out`, or `raw` itself where that is what it holds.

    raw: aligned bytes, as many elements as `out`.
    """
    if dtype == "float64":
        return raw.view(np.float64)
    if dtype in NATIVE:
        np.copyto(out, raw.view(NATIVE[dtype]))
    elif dtype == "bfloat16":
        np.copyto(out, (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32))
    else:
        np.take(_f8_values(dtype), raw, out=out)
    return out


def encode(values: Floats, divisor: float, dtype: str, out: NDArray[np.uint8], surely_finite: bool = False) -> bool:
    """Writes float64 `values` / `divisor`, rounded once, as elements of `dtype` into the bytes of `out`.

    False where a result is not finite: a value is NaN or infinite, or too large for `dtype`; surely_finite: that is not
    looked at where it costs. Changes `values` where numpy does not know `dtype`.
    """
    if dtype in NATIVE:
        typed = out.view(NATIVE[dtype])
        np.divide(values, divisor, out=typed, casting="same_kind")
        return surely_finite or bool(np.isfinite(typed).all())
    np.divide(values, divisor, out=values)
    if dtype == "bfloat16":
        bits = _odd_float32(values)
        bits += 0x7FFF + ((bits >> 16) & 1)
        bits >>= 16
        np.copyto(out.view(np.uint16), bits, casting="unsafe")
        return bool(np.isfinite(values).all() and ((bits & 0x7F80) != 0x7F80).all())
    return _encode_f8(values, dtype, out)


def _odd_float32(values: Floats) -> NDArray[np.uint32]:
    """The bits of float32 rounded "to odd": towards zero, the last bit set where anything was cut off.

    Rounding that again to fewer bits is the same as rounding the float64 once (Boldo and Melquiond 2008).
    """
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    exact = single.astype(np.float64)
    bits -= np.abs(exact) > np.abs(values)
    bits |= exact != values
    return bits


@cache
def _f8_values(dtype: str) -> Floats:
    """The value of each of the 256 codes."""
    mantissa, bias, finite, negative_zero = F8[dtype]
    codes = np.arange(128)
    exponent, fraction = codes >> mantissa, codes & ((1 << mantissa) - 1)
    whole = np.where(exponent == 0, fraction, fraction + (1 << mantissa))
    values = np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa)
    values[finite:] = np.nan
    if dtype == "float8_e5m2":
        values[finite] = np.inf
    both = np.concatenate([values, -values])
    if not negative_zero:
        both[128] = np.nan
    return both


def _encode_f8(values: Floats, dtype: str, out: NDArray[np.uint8]) -> bool:
    _, _, finite, negative_zero = F8[dtype]
    magnitudes = _f8_values(dtype)[:finite]
    middles = np.append(magnitudes[:-1] + magnitudes[1:], 3 * magnitudes[-1] - magnitudes[-2]) / 2
    size = np.abs(values)
    code = np.searchsorted(middles, size, side="left")  # of two neighbours the smaller where `size` is their middle
    code += (code & 1) & (np.searchsorted(middles, size, side="right") > code)
    ok = bool((code < finite).all())  # NaN sorts after everything
    sign = np.signbit(values) if negative_zero else np.signbit(values) & (code > 0)
    np.copyto(out, np.where(sign, code + 128, code), casting="unsafe")
    return ok
