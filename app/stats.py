"""What a study's counts say, and how sure one may be: pure functions, without a database.

Two questions are kept apart. *New participants, these images*: participants are the units, each with one
difference of rates (`sign_flip`, `mean_difference`). *New participants and new images*: the answers are
clustered by participant and by source image at once (`rate`, `new_images_test`). Data that cannot answer a
question give `None` and a reason, never NaN or infinity. Every result is the same to the last bit in whatever
order the data come and however participants and images are numbered.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy  # imports its parts when they are first used; `stats` takes a second

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Of the sign-flip distribution: grid points (two arrays of 32 MiB), and additions (grid points x participants).
GRID_LIMIT = 2**22
WORK_LIMIT = 2**31


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
class Cell:
    """Answers of one participant on one source image: `count` of `n` had the outcome, 0 <= count <= n."""

    participant: int
    image: int
    count: int
    n: int


@dataclass(frozen=True)
class Sample:
    """Cells as columns of shape (cells,), each of dtype int64; `participant` and `image` are any numbers."""

    participant: Ints
    image: Ints
    count: Ints
    n: Ints

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Sample:
        """The same cells, as columns."""
        rows = [(c.participant, c.image, c.count, c.n) for c in cells]
        return cls(*np.array(rows, np.int64).reshape(-1, 4).T)

    @classmethod
    def of_answers(cls, participant: Ints, image: Ints, outcome: npt.NDArray[np.bool_]) -> Sample:
        """One cell an answer: whether it had the outcome."""
        return cls(participant, image, outcome.astype(np.int64), np.ones(outcome.size, np.int64))


@dataclass(frozen=True)
class SignFlip:
    """Two-sided p-value and mid-p, both in (0, 1], over `participants`.

    `exact` is False where the grid had to be coarsened; both are then upper bounds.
    """

    p: float
    p_mid: float
    participants: int
    exact: bool = True


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


def rate(sample: Sample, level: float = 0.95) -> Rate:
    """Rate of an outcome, with Wilson's interval on the effective number of answers n / deff.

    deff = max(1, V / (p (1 - p) / n) (t / z)^2), where V is the two-way (participant, source image)
    cluster-robust variance of the mean, as in `new_images_test`, and t and z are the quantiles of Student's
    distribution with min(participants, images) - 1 degrees of freedom and of the normal: few clusters show V
    only roughly. At a rate of 0 or 1 the answers show no spread to estimate V from, and deff is 1. One
    participant, or one source image, does not show how much they differ: V then comes from the other
    direction alone, t / z is left out, and `reason` says what the interval leaves out.

    Raises ValueError for a cell with a count outside 0..n and for a level outside (0, 1).

    Wilson, JASA 22 (1927) 209; deff: Kish, Survey Sampling (1965); intervals on n / deff and (t / z)^2: Korn
    and Graubard, Survey Methodology 24 (1998) 193; two-way variance: Cameron, Gelbach and Miller, JBES 29
    (2011) 238.
    """
    _check_level(level)
    participants, images, count, n = _columns(sample)
    total, successes = int(n.sum()), int(count.sum())
    if total == 0:
        return Rate(0, 0, None, None, None, None, "There are no answers.")
    two_way = _two_way(participants, images, [count * total - n * successes], [total**2])
    p = successes / total
    deff = 1.0
    if 0 < successes < total:
        df = min(two_way.participants, two_way.images) - 1
        few = scipy.stats.t.ppf((1 - level) / 2, df) / scipy.stats.norm.ppf((1 - level) / 2) if df else 1.0
        deff = max(1.0, two_way.variance * total / (p * (1 - p)) * float(few) ** 2)
    low, high = _wilson(p, total / deff, level)
    return Rate(successes, total, p, low, high, deff, _left_out(two_way))


def sign_flip(differences: Sequence[Fraction]) -> SignFlip | None:
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
    if not differences:
        return None
    numerators, _ = _common_denominator(differences)
    divisor = math.gcd(*numerators) or 1
    magnitudes = sorted(abs(x) // divisor for x in numerators if x)
    observed = abs(sum(numerators)) // divisor
    # A pattern's sum is the total less twice T, the magnitudes that it makes negative: |sum| >= observed
    # means T <= tail or, as likely, T >= total - tail. So one tail is enough, and nothing is subtracted.
    tail = (sum(magnitudes) - observed) // 2
    step = -(-(tail + 1) // min(GRID_LIMIT, WORK_LIMIT // max(1, len(magnitudes))))
    # T <= tail implies sum(m // step) <= tail // step: rounding down only ever adds patterns to the tail.
    lower_tail = _lower_tail([m // step for m in magnitudes if m >= step], tail // step)
    at_most = float(lower_tail.sum())
    below = float(lower_tail[: (tail - 1) // step + 1].sum())
    # At a sum of zero the two tails overlap in the patterns that sum to zero.
    p, p_mid = (2 * at_most, at_most + below) if observed else (1.0, 0.5 + below)
    return SignFlip(_probability(p), _probability(p_mid), len(differences), exact=step == 1)


def mean_difference(differences: Sequence[Fraction], level: float = 0.95) -> tuple[float | None, Interval]:
    """Mean of the participants' differences of rates, with its paired-t interval.

    The interval is not cut at -1 and 1: it is the one that every statistics program gives. There is none
    below two participants, nor where all differences are equal: a width of zero would claim certainty.
    Raises ValueError for a level outside (0, 1). Student, Biometrika 6 (1908) 1.
    """
    _check_level(level)
    n = len(differences)
    if n == 0:
        return None, Interval(None, None, "There are no participants to compare.")
    numerators, denominator = _common_denominator(differences)
    total = sum(numerators)
    mean = float(Fraction(total, n * denominator))
    if n == 1:
        return mean, Interval(None, None, "One participant does not show how much participants differ.")
    # In integers, so that equal differences give a spread of exactly zero.
    spread = n * sum(x * x for x in numerators) - total**2
    if spread == 0:
        return mean, Interval(
            None, None, "All participants have the same difference, so its spread is unknown."
        )
    se = math.sqrt(Fraction(spread, n**2 * (n - 1) * denominator**2))
    half = -float(scipy.stats.t.ppf((1 - level) / 2, n - 1)) * se
    return mean, Interval(mean - half, mean + half)


def new_images_test(a: Sample, b: Sample) -> NewImages:
    """Two-way cluster-robust t-test of the rate of `a` minus the rate of `b`, each pooled over its answers.

    V = V_participants + V_images - V_intersection, each with the factor G / (G - 1) for its G clusters, and
    at least the larger of the first two; df = min(participants, images) - 1, counted over both samples. p is
    two-sided. A cluster may appear in one sample or in both. There is no p where df < 1 or V = 0. Raises
    ValueError for a cell with a count outside 0..n.

    Cameron, Gelbach and Miller, JBES 29 (2011) 238; df: Cameron and Miller, J. Human Resources 50 (2015) 317.
    """
    columns_a, columns_b = _columns(a), _columns(b)
    participants, images, count, n = (np.concatenate(pair) for pair in zip(columns_a, columns_b, strict=True))
    in_a = np.arange(n.size) < columns_a[3].size
    residuals, divisors, rates = [], [], []
    for sign, sample in ((1, in_a), (-1, ~in_a)):
        total, successes = int(n[sample].sum()), int(count[sample].sum())
        if total == 0:
            return NewImages(None, None, None, None, "There are no answers for one of the two.")
        residuals.append(np.where(sample, count * total - n * successes, 0))
        divisors.append(sign * total**2)
        rates.append(Fraction(successes, total))
    two_way = _two_way(participants, images, residuals, divisors)
    difference = float(rates[0] - rates[1])
    df = min(two_way.participants, two_way.images) - 1
    if df < 1:
        few = "participant" if two_way.participants < 2 else "source image"
        return NewImages(None, difference, None, df, f"One {few} does not show how much {few}s differ.")
    if two_way.variance == 0:
        return NewImages(
            None, difference, None, df, "The answers show no spread between clusters to judge it by."
        )
    se = math.sqrt(two_way.variance)
    p = 2 * float(scipy.stats.t.sf(abs(difference) / se, df))
    return NewImages(_probability(p), difference, se, df, None)


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
    return _probability(float(scipy.stats.fisher_exact(table).pvalue))


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
    return _probability(2 * float(scipy.stats.norm.sf(math.sqrt(squared))))


@lru_cache(maxsize=4096)
def exact_interval(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval for `count` of n > 0 independent answers: different people's on one image.

    Wide, and never too narrow, which Wilson's is for one to three answers (docs/calibration.md). Raises
    ValueError for a count outside 0..n or a level outside (0, 1). Clopper and Pearson, Biometrika 26 (1934) 404.
    """
    _check_level(level)
    if not (0 <= count <= n and n > 0):
        raise ValueError("a count must lie between 0 and its n")
    tail = (1 - level) / 2
    low = float(scipy.stats.beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(scipy.stats.beta.isf(tail, count + 1, n - count)) if count < n else 1.0
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


@dataclass(frozen=True)
class _TwoWay:
    variance: float
    participants: int
    images: int


def _columns(sample: Sample) -> tuple[Ints, Ints, Ints, Ints]:
    """Participant, image, count and n of the cells with answers, each of shape (cells,)."""
    if np.any((sample.count < 0) | (sample.count > sample.n)):
        raise ValueError("a cell's count must lie between 0 and its n")
    answered = sample.n > 0  # a cell without answers must not count as a cluster
    return sample.participant[answered], sample.image[answered], sample.count[answered], sample.n[answered]


def _two_way(participants: Ints, images: Ints, residuals: Sequence[Ints], divisors: Sequence[int]) -> _TwoWay:
    """Two-way cluster-robust variance of the sum over cells of residuals[0] / divisors[0] + ...

    Cells have shape (cells,). The residuals are integers and are divided only after they are summed, so that
    clusters that cancel give exactly zero (up to 94 million answers, where squares pass 2^53).
    """
    participant, image = _compact(participants), _compact(images)
    # Several cells of one participant on one image, in one sample or in both, are one cluster.
    both = _compact(participant * (int(image.max(initial=0)) + 1) + image)
    (by_participant, n_participants), (by_image, n_images), (by_both, _) = (
        _cluster_variance(cluster, residuals, divisors) for cluster in (participant, image, both)
    )
    # The difference alone can be too small, even negative, in a small sample.
    variance = max(by_participant + by_image - by_both, by_participant, by_image)
    return _TwoWay(variance, n_participants, n_images)


def _compact(names: Ints) -> Ints:
    """The clusters' names as small indices; sorting is spared where they are small already."""
    if names.size and names.min() >= 0 and names.max() < 16 * names.size + 1024:
        return names
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _cluster_variance(cluster: Ints, residuals: Sequence[Ints], divisors: Sequence[int]) -> tuple[float, int]:
    """One direction's G / (G - 1) times the sum of squared cluster sums (0 where G < 2), and G."""
    size = int(cluster.max(initial=-1)) + 1
    clusters = int(np.count_nonzero(np.bincount(cluster, minlength=size)))
    if clusters < 2:
        return 0.0, clusters
    weighted = (np.bincount(cluster, weights=residual, minlength=size) for residual in residuals)
    sums: list[Floats] = [np.asarray(column, np.float64) for column in weighted]
    # Either way the last digit does not hang on how the clusters are numbered.
    if len(sums) == 1:
        return clusters * _sum_of_squares(sums[0]) / ((clusters - 1) * divisors[0] ** 2), clusters
    together = np.sum([column / divisor for column, divisor in zip(sums, divisors, strict=True)], axis=0)
    squares = np.square(together[together != 0])
    return clusters / (clusters - 1) * math.fsum(squares.tolist()), clusters


def _sum_of_squares(whole: Floats) -> int:
    """The exact sum of the squares of whole numbers, shape (clusters,)."""
    numbers: Ints = whole.astype(np.int64)
    if float(np.abs(whole).max(initial=0)) ** 2 * numbers.size < 2**63:
        return int(numbers @ numbers)
    return sum(x * x for x in numbers.tolist())


def _left_out(two_way: _TwoWay) -> str | None:
    single = [
        name
        for name, clusters in (("participants", two_way.participants), ("source images", two_way.images))
        if clusters == 1
    ]
    if not single:
        return None
    return f"The interval leaves out differences between {' and between '.join(single)}: there is only one."


def _wilson(p: float, n: float, level: float) -> tuple[float, float]:
    z = -float(scipy.stats.norm.ppf((1 - level) / 2))  # the lower tail, as (1 + level) / 2 can round to 1
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not put a bound outside [0, 1] or past the rate, nor keep a rate of 0 or 1 off its bound.
    return max(0.0, min(p, center - half)), min(1.0, max(p, center + half))


def _common_denominator(differences: Sequence[Fraction]) -> tuple[list[int], int]:
    denominator = math.lcm(*(d.denominator for d in differences))
    return [d.numerator * (denominator // d.denominator) for d in differences], denominator


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


def _probability(p: float) -> float:
    """Keep a p-value within (0, 1], where underflow or rounding took it out."""
    return min(1.0, max(p, sys.float_info.min))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError("a confidence level lies between 0 and 1")
