"""Looks at a comparison before the target: O'Brien-Fleming boundaries, which keep the false alarms at alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy

from app.clusters import Floats

SMALLEST_STEP = 1e-5  # between information fractions; a finer one would need a larger grid than it is worth


def boundaries(fractions: Sequence[float], alpha: float = 0.05) -> list[float]:
    """Nominal two-sided p per look of the classical O'Brien-Fleming test: p <= boundary crosses it.

    `fractions` are the looks' shares of the final information, 0 < t_1 < ... < t_K = 1 (here: participants of
    the target). Look k rejects where |Z_k| >= C / sqrt(t_k); C makes the chance of rejecting at any look, under
    the null, `alpha`. C is found to an error below 1e-9. One look gives alpha itself. A boundary too small for
    a float is 0.

    Raises ValueError for fractions that do not rise from above 0 to 1 in steps of SMALLEST_STEP or more, and
    for an alpha outside (0, 1).

    O'Brien and Fleming, Biometrics 35 (1979) 549; integration: Armitage, McPherson and Rowe, JRSS A 132 (1969)
    235; Jennison and Turnbull, Group Sequential Methods (2000), chapters 2 and 19.
    """
    times = tuple(float(t) for t in fractions)
    if not 0 < alpha < 1:
        raise ValueError("alpha lies between 0 and 1")
    if not times or times[-1] != 1:
        raise ValueError("the last information fraction must be 1")
    steps = [b - a for a, b in zip((0.0, *times), times, strict=False)]
    if not all(step >= SMALLEST_STEP * (1 - 1e-9) for step in steps):  # the rounding of the differences
        raise ValueError(f"information fractions must rise from 0 in steps of {SMALLEST_STEP} or more")
    return list(_boundaries(times, alpha))


@lru_cache(maxsize=256)
def _boundaries(times: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    if len(times) == 1:
        return (alpha,)
    # More looks only ask for a larger C than one; and by reflection, for Brownian motion B,
    # P(max |B| >= C) <= 2 P(|B(1)| >= C).
    lowest, highest = -float(scipy.special.ndtri(alpha / 2)), -float(scipy.special.ndtri(alpha / 4))
    # A little wider, as rounding can put C on the edge where the looks nearly coincide or the first is very early.
    bracket = 0.999 * lowest, 1.001 * highest
    c = scipy.optimize.brentq(
        lambda c: crossing_probability(c, times) - alpha, *bracket, xtol=1e-13, rtol=1e-13
    )
    return tuple(2 * float(scipy.special.ndtr(-c / math.sqrt(t))) for t in times)


def crossing_probability(c: float, times: Sequence[float]) -> float:
    """P(|B(t)| >= c at one of the increasing `times`), for Brownian motion B from 0: the false alarms.

    B(t_k) = sqrt(t_k) Z_k has independent increments, so its density on paths that have not crossed follows from
    the one a look before by one integral, here on Gauss-Legendre nodes; it is even, so half of it is enough.
    """
    sigmas = np.sqrt(np.diff(times, prepend=0.0))
    # Products of two Gaussians are as narrow as min(sigmas) / sqrt(2): some nodes within each such width.
    m = 24 + math.ceil(2.5 * c / float(sigmas.min()))
    nodes, weights = _legendre(m)
    x, w = c * (nodes + 1) / 2, c * weights / 2  # on [0, c], each of shape (m,)
    crossed = 2 * float(scipy.special.ndtr(-c / sigmas[0]))
    density: Floats = 2 * _gauss(x / sigmas[0]) / sigmas[0]  # of |B(t_1)|, shape (m,)
    for sigma in sigmas[1:]:
        mass = w * density
        crossed += float(mass @ (scipy.special.ndtr((x - c) / sigma) + scipy.special.ndtr(-(x + c) / sigma)))
        density = _step(x, sigma) @ mass
    return crossed


def _step(x: Floats, sigma: float) -> Floats:
    """Density of |B| at x[i] one look on, from |B| = x[j], shape (m, m)."""
    return (_gauss((x[:, None] - x) / sigma) + _gauss((x[:, None] + x) / sigma)) / sigma


def _gauss(z: Floats) -> Floats:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


@lru_cache(maxsize=8)
def _legendre(m: int) -> tuple[Floats, Floats]:
    nodes, weights = scipy.special.roots_legendre(m)
    return nodes, weights
