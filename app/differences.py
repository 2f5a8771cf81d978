"""Participants' differences of rates between two models: their mean, and the exact test of zero.

For new participants on these images. Differences are given one by one, or with how many participants have each:
there are few different ones among many participants. Nothing hangs on their order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import scipy

from app.clusters import Floats
from app.stats import Interval, check_level, probability

# Of the sign-flip distribution: grid points (two arrays of 32 MiB), and additions (grid points x participants).
GRID_LIMIT = 2**22
WORK_LIMIT = 2**31


Differences = Mapping[Fraction, int] | Iterable[Fraction]


@dataclass(frozen=True)
class SignFlip:
    """Two-sided p-value and mid-p, both in (0, 1], over `participants`.

    `exact` is False where the grid had to be coarsened; both are then upper bounds.
    """

    p: float
    p_mid: float
    participants: int
    exact: bool = True


def sign_flip(differences: Differences) -> SignFlip | None:
    """Exact two-sided sign-flip test of the participants' differences of rates; None without participants.

    Under the null each difference could as well have had the other sign. p is the share of all 2^N patterns
    of signs whose |sum| is at least the observed one; p_mid counts those equal to it by half. Differences of
    zero count among the participants and change neither. Exact means a relative error below N * 2^-52; what
    is below the smallest normal float, 2.2e-308, is given as that float. Only where the common denominator
    asks for more than GRID_LIMIT grid points, or WORK_LIMIT additions, is the grid coarsened: p can only grow,
    and `exact` is False.

    Fisher, The Design of Experiments (1935), section 21; distribution by convolution: Pagano and Tritchler,
    JASA 78 (1983) 435; mid-p: Lancaster, JASA 56 (1961) 223.
    """
    numerators, _ = _common_denominator(differences)
    if not numerators:
        return None
    divisor = math.gcd(*numerators) or 1
    magnitudes: Counter[int] = Counter()
    for x, people in numerators.items():
        if x:
            magnitudes[abs(x) // divisor] += people
    observed = abs(sum(x * people for x, people in numerators.items())) // divisor
    p, p_mid, exact = _two_tails(tuple(sorted(magnitudes.items())), observed, GRID_LIMIT, WORK_LIMIT)
    return SignFlip(p, p_mid, numerators.total(), exact)


@lru_cache(maxsize=256)
def _two_tails(
    magnitudes: tuple[tuple[int, int], ...], observed: int, grid: int, work: int
) -> tuple[float, float, bool]:
    """p, p_mid and exact of SignFlip, for rising (magnitude, how often) pairs and the sum with its sign away."""
    participants = sum(people for _, people in magnitudes)
    # A pattern's sum is the total less twice T, the magnitudes that it makes negative: |sum| >= observed
    # means T <= tail or, as likely, T >= total - tail. So one tail is enough, and nothing is subtracted.
    tail = (sum(m * people for m, people in magnitudes) - observed) // 2
    step = -(-(tail + 1) // min(grid, work // max(1, participants)))
    # T <= tail implies sum(m // step) <= tail // step: rounding down only ever adds patterns to the tail.
    each = [m // step for m, people in magnitudes if m >= step for _ in range(people)]
    lower_tail = _lower_tail(each, tail // step)
    at_most = float(lower_tail.sum())
    below = float(lower_tail[: (tail - 1) // step + 1].sum())
    # At a sum of zero the two tails overlap in the patterns that sum to zero.
    p, p_mid = (2 * at_most, at_most + below) if observed else (1.0, 0.5 + below)
    return probability(p), probability(p_mid), step == 1


def mean_difference(differences: Differences, level: float = 0.95) -> tuple[float | None, Interval]:
    """Mean of the participants' differences of rates, with its paired-t interval.

    The interval is not cut at -1 and 1: it is the one that every statistics program gives. There is none
    below two participants, nor where all differences are equal: a width of zero would claim certainty.
    Raises ValueError for a level outside (0, 1). Student, Biometrika 6 (1908) 1.
    """
    check_level(level)
    numerators, denominator = _common_denominator(differences)
    n = numerators.total()
    if n == 0:
        return None, Interval(None, None, "There are no participants to compare.")
    total = sum(x * people for x, people in numerators.items())
    mean = float(Fraction(total, n * denominator))
    if n == 1:
        return mean, Interval(None, None, "One participant does not show how much participants differ.")
    # In integers, so that equal differences give a spread of exactly zero.
    spread = n * sum(x * x * people for x, people in numerators.items()) - total**2
    if spread == 0:
        return mean, Interval(
            None, None, "All participants have the same difference, so its spread is unknown."
        )
    se = math.sqrt(Fraction(spread, n**2 * (n - 1) * denominator**2))
    half = -float(scipy.special.stdtrit(n - 1, (1 - level) / 2)) * se
    return mean, Interval(mean - half, mean + half)


def _lower_tail(magnitudes: Sequence[int], tail: int) -> Floats:
    """P(T = 0), ..., P(T = tail), shape (tail + 1,): T sums magnitudes, each in or out with chance 1/2."""
    patterns: Floats = np.zeros(tail + 1)  # patterns[t]: how many patterns so far have the sum t
    patterns[0] = 1.0
    following = patterns.copy()
    reach = halvings = 0
    for magnitude in magnitudes:
        # Only positive numbers are added: no digits cancel, each step rounds once.
        reach = min(reach + magnitude, tail)
        following[:magnitude] = patterns[:magnitude]
        np.add(
            patterns[magnitude : reach + 1],
            patterns[: max(0, reach + 1 - magnitude)],
            out=following[magnitude : reach + 1],
        )
        patterns, following = following, patterns
        halvings += 1
        if halvings == 512:  # long before 2^1024 overflows
            patterns *= 0.5**halvings
            halvings = 0
    return patterns * 0.5**halvings


def _common_denominator(differences: Differences) -> tuple[Counter[int], int]:
    """The numerators over the least common denominator, with how many participants have each; and it."""
    counted = Counter(differences)
    denominator = math.lcm(*(d.denominator for d in counted))
    return Counter(
        {d.numerator * (denominator // d.denominator): people for d, people in counted.items()}
    ), denominator
