"""A batch's Hessian as the whole set's plus a Wigner matrix: its largest eigenvalue against the batch size.

That an eigenvalue l of a matrix of low rank becomes l + s^2/l when a Wigner matrix is added whose spectrum ends at 2 s,
and is lost in it where l < s, is the theorem of Peche (2006) and Capitaine et al. (2009), checked in the tests;
1/B - 1/N is the variance of a mean over B of N samples without replacement. That Granziol, Zohren and Roberts (2022)
state them so, and B_sat, is from memory and unconfirmed. noise: P sigma^2 of one sample; size: N.
"""

from __future__ import annotations

import math


def spread(noise: float, batch: float, size: int) -> float:
    """s: half of where the spectrum of a batch's noise ends."""
    return math.sqrt(noise * max(0.0, 1 / batch - 1 / size))


def outlier(largest: float, noise: float, batch: float, size: int) -> float:
    """The largest eigenvalue of a batch's Hessian; largest: that of the whole set, above 0."""
    s = spread(noise, batch, size)
    return largest + s * s / largest if s < largest else 2 * s


def implied_noise(largest: float, of_batch: float, batch: int, size: int) -> float:
    """The noise with which `outlier` is `of_batch`; 0 where that is not above `largest`."""
    s_squared = of_batch * of_batch / 4 if of_batch > 2 * largest else largest * max(0.0, of_batch - largest)
    return s_squared / (1 / batch - 1 / size)


def saturation(largest: float, noise: float) -> float:
    """B_sat: the batch at which s is `largest`; from there on the curvature, below it the noise, sets the rate."""
    return noise / largest**2


def stable_rate(eigenvalue: float) -> float:
    """Gradient descent on a quadratic is stable below 2 over its largest eigenvalue."""
    return 2 / eigenvalue
