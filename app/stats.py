"""What a study's counts say, and how sure one may be: pure functions, without a database.

Two questions are kept apart. *New participants, these images*: participants are the units, each with one
difference of rates (`app.differences`). *New participants and new images*: the answers are clustered by
participant and by source image at once (`rate`, `new_images_test`). Data that cannot answer a question give
`None` and a reason, never NaN or infinity. Every result is the same to the last bit in whatever order the data
come and however participants and images are numbered.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import scipy  # imports its parts when they are first used; `special` takes half a second, `stats` a whole one

from app.clusters import Clustered, Clusters


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval, or why there is none (`low` and `high` are None together)."""

    low: float | None
    high: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Rate:
    """`count` of `n` answers: `rate`, `low` and `high` lie in [0, 1]; `deff`, the design effect, is >= 1.

    `reason` says why there is no rate, or what the interval cannot account for.
    """

    count: int
    n: int
    rate: float | None
    low: float | None
    high: float | None
    deff: float | None
    reason: str | None


@dataclass(frozen=True)
class NewImages:
    """A difference of rates, in [-1, 1], tested for new participants and new images: `p` lies in (0, 1].

    `reason` says why `p` and `se` are None.
    """

    p: float | None
    difference: float | None
    se: float | None
    df: int | None
    reason: str | None


def rate(answers: Clustered, level: float = 0.95) -> Rate:
    """Rate of an outcome in one sample, with Wilson's interval on the effective number of answers n / deff.

    deff = max(1, V / (p (1 - p) / n) (t / z)^2), where V is the two-way (participant, source image)
    cluster-robust variance of the mean, as in `new_images_test`, and t and z are the quantiles of Student's
    distribution with min(participants, images) - 1 degrees of freedom and of the normal: few clusters show V
    only roughly. At a rate of 0 or 1 the answers show no spread to estimate V from, and deff is 1. One
    participant, or one source image, does not show how much they differ: V then comes from the other
    direction alone, t / z is left out, and `reason` says what the interval leaves out.

    Raises ValueError for a level outside (0, 1).

    Wilson, JASA 22 (1927) 209; deff: Kish, Survey Sampling (1965); intervals on n / deff and (t / z)^2: Korn
    and Graubard, Survey Methodology 24 (1998) 193; two-way variance: Cameron, Gelbach and Miller, JBES 29
    (2011) 238.
    """
    check_level(level)
    successes, total = answers.totals
    if total == 0:
        return Rate(0, 0, None, None, None, None, "There are no answers.")
    p = successes / total
    deff = 1.0
    if 0 < successes < total:
        df = min(answers.participants.number, answers.images.number) - 1
        few = scipy.special.stdtrit(df, (1 - level) / 2) / scipy.special.ndtri((1 - level) / 2) if df else 1.0
        variance = float(_two_way(answers, [total, -successes], total**2))
        deff = max(1.0, variance * total / (p * (1 - p)) * float(few) ** 2)
    low, high = _wilson(p, total / deff, level)
    return Rate(successes, total, p, low, high, deff, _left_out(answers))


def new_images_test(answers: Clustered) -> NewImages:
    """Two-way cluster-robust t-test of the rate of the first of two samples minus that of the second.

    Rates are pooled over a sample's answers. V = V_participants + V_images - V_intersection, each with the factor
    G / (G - 1) for its G clusters, and at least the larger of the first two; df = min(participants, images) - 1,
    counted over both samples. p is two-sided. A cluster may appear in one sample or in both. There is no p where
    df < 1 or V = 0.

    Cameron, Gelbach and Miller, JBES 29 (2011) 238; df: Cameron and Miller, J. Human Resources 50 (2015) 317.
    """
    count_a, n_a, count_b, n_b = answers.totals
    if n_a == 0 or n_b == 0:
        return NewImages(None, None, None, None, "There are no answers for one of the two.")
    # An answer adds (hit - rate) / n to its sample's rate, here over the common denominator (n_a n_b)^2.
    weights = [n_a * n_b**2, -count_a * n_b**2, -n_b * n_a**2, count_b * n_a**2]
    variance = _two_way(answers, weights, (n_a * n_b) ** 2)
    difference = float(Fraction(count_a, n_a) - Fraction(count_b, n_b))
    df = min(answers.participants.number, answers.images.number) - 1
    if df < 1:
        few = "participant" if answers.participants.number < 2 else "source image"
        return NewImages(None, difference, None, df, f"One {few} does not show how much {few}s differ.")
    if variance == 0:
        return NewImages(
            None, difference, None, df, "The answers show no spread between clusters to judge it by."
        )
    se = math.sqrt(variance)
    p = 2 * float(scipy.special.stdtr(df, -abs(difference) / se))
    return NewImages(probability(p), difference, se, df, None)


@lru_cache(maxsize=256)
def fisher(count_a: int, n_a: int, count_b: int, n_b: int) -> float | None:
    """Two-sided p of Fisher's exact test of count_a of n_a against count_b of n_b; None where an n is 0.

    Naive here: it takes the answers of one participant, or on one image, for independent.
    Raises ValueError for a count outside 0..n. Fisher, JRSS 85 (1922) 87.
    """
    if not (0 <= count_a <= n_a and 0 <= count_b <= n_b):
        raise ValueError("a count must lie between 0 and its n")
    if n_a == 0 or n_b == 0:
        return None
    table = np.array([[count_a, n_a - count_a], [count_b, n_b - count_b]])
    return probability(float(scipy.stats.fisher_exact(table).pvalue))


def pooled_z(count_a: int, n_a: int, count_b: int, n_b: int) -> float | None:
    """Two-sided p of the z-test of two proportions with a pooled variance; None where it is not defined.

    Naive here, as `fisher` is, and an approximation besides. Raises ValueError for a count outside 0..n.
    Pearson, Philosophical Magazine 50 (1900) 157: its square is the chi-squared of the 2 x 2 table.
    """
    if not (0 <= count_a <= n_a and 0 <= count_b <= n_b):
        raise ValueError("a count must lie between 0 and its n")
    successes, n = count_a + count_b, n_a + n_b
    if n_a == 0 or n_b == 0 or successes in (0, n):
        return None
    # In integers up to the root, so that equal rates give exactly 1.
    squared = Fraction((count_a * n_b - count_b * n_a) ** 2 * n, n_a * n_b * successes * (n - successes))
    return probability(2 * float(scipy.special.ndtr(-math.sqrt(squared))))


@lru_cache(maxsize=4096)
def exact_interval(count: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval for `count` of n > 0 independent answers: of several people on one image.

    Wide, and never too narrow, which Wilson's is for one to three answers (docs/calibration.md). Raises
    ValueError for a count outside 0..n. Clopper and Pearson, Biometrika 26 (1934) 404.
    """
    if not (0 <= count <= n and n > 0):
        raise ValueError("a count must lie between 0 and its n")
    tail = 0.025
    low = float(scipy.special.betaincinv(count, n - count + 1, tail)) if count else 0.0
    high = float(scipy.special.betainccinv(count + 1, n - count, tail)) if count < n else 1.0
    return low, high


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given; None stays None and is not in the family.

    Holm, Scandinavian Journal of Statistics 6 (1979) 65.
    """
    family = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(family):
        largest = max(largest, min(1.0, p * (len(family) - rank)))
        adjusted[i] = largest
    return adjusted


def _two_way(answers: Clustered, weights: Sequence[int], divisor: int) -> Fraction:
    """Two-way cluster-robust variance of the sum over answers of their counts and ns, so weighted, by `divisor`."""
    by_participant, by_image, by_both = (
        _variance(clusters, weights) for clusters in (answers.participants, answers.images, answers.both)
    )
    # The difference alone can be too small, even negative, in a small sample.
    return max(by_participant + by_image - by_both, by_participant, by_image) / divisor**2


def _variance(clusters: Clusters, weights: Sequence[int]) -> Fraction:
    """One direction's G / (G - 1) times the sum of squared cluster sums (0 where G < 2)."""
    if clusters.number < 2:
        return Fraction(0)
    return Fraction(clusters.number * clusters.squares(weights), clusters.number - 1)


def _left_out(answers: Clustered) -> str | None:
    single = [
        name
        for name, clusters in (("participants", answers.participants), ("source images", answers.images))
        if clusters.number == 1
    ]
    if not single:
        return None
    return f"The interval leaves out differences between {' and between '.join(single)}: there is only one."


def _wilson(p: float, n: float, level: float) -> tuple[float, float]:
    z = -float(scipy.special.ndtri((1 - level) / 2))  # the lower tail, as (1 + level) / 2 can round to 1
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not put a bound outside [0, 1] or past the rate, nor keep a rate of 0 or 1 off its bound.
    return max(0.0, min(p, center - half)), min(1.0, max(p, center + half))


def probability(p: float) -> float:
    """Keep a p-value within (0, 1], where underflow or rounding took it out."""
    return min(1.0, max(p, sys.float_info.min))


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError("a confidence level lies between 0 and 1")
