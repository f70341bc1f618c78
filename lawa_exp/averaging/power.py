"""Power-function EMA profiles, and any width rebuilt from two that were tracked (Karras et al. 2024, EDM2, section 3).

The profile of an EMA with exponent g after step t weighs step s <= t in proportion to s^g. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64] | np.float64

Profile = tuple[float, float]  # (step t, sigma_rel)


@lru_cache
def exponent(sigma_rel: float) -> float:
    """g of the profile s^g whose standard deviation is sigma_rel * t: (g+1) / ((g+2)^2 (g+3)) = sigma_rel^2.

    The largest real root (EDM2, algorithm 2); at least 0 for sigma_rel up to 12^-0.5 = 0.2887.
    """
    import numpy as np

    s = sigma_rel**-2
    roots = np.roots([1, 7, 16 - s, 12 - s])
    return float(roots.real.max())


def rebuilding_weights(tracked: Sequence[Profile], wanted: Profile) -> list[float]:
    """Weights of the averages with profiles `tracked` whose weighted sum is nearest to the profile `wanted`.

    Least squares between the profiles as functions of s, each normalised to sum 1 (EDM2, algorithm 3). The weights are
    divided by their sum. No profile of `tracked` may be later than the wanted one.
    """
    import numpy as np

    products, with_wanted, _ = _inner_products(tracked, wanted)
    weights = np.linalg.lstsq(products, with_wanted, rcond=None)[0]
    return [float(w) for w in weights / weights.sum()]


def rebuilding_error(tracked: Sequence[Profile], wanted: Profile, weights: Sequence[float]) -> float:
    """How far the weighted sum of `tracked` is from the profile `wanted`: L2 norm of the difference over its own."""
    import numpy as np

    products, with_wanted, own = _inner_products(tracked, wanted)
    w = np.array(weights)
    return float(max(0.0, (w @ products @ w - 2 * w @ with_wanted + own) / own) ** 0.5)


def _inner_products(tracked: Sequence[Profile], wanted: Profile) -> tuple[Array, Array, float]:
    """Of the tracked profiles with each other, with the wanted one, and of that one with itself."""
    import numpy as np

    t, g = (np.array(x, dtype=np.float64) for x in zip(*((t, exponent(s)) for t, s in tracked), strict=True))
    t_wanted, g_wanted = np.float64(wanted[0]), np.float64(exponent(wanted[1]))
    assert (t <= t_wanted).all(), "a profile from later than the wanted one"
    products = _inner_product(t[:, None], g[:, None], t[None, :], g[None, :])
    with_wanted = _inner_product(t, g, t_wanted, g_wanted)
    return products, with_wanted, float(_inner_product(t_wanted, g_wanted, t_wanted, g_wanted))


def _inner_product(t_a: Array, g_a: Array, t_b: Array, g_b: Array) -> Array:
    """Integral over s of the two profiles' product (EDM2, equation 151), up to the earlier of their ends."""
    import numpy as np

    ratio = t_a / t_b
    power = np.where(t_a < t_b, g_b, -g_a)
    return (g_a + 1) * (g_b + 1) * ratio**power / ((g_a + g_b + 1) * np.maximum(t_a, t_b))
