"""The statistics of recompute.py: pure functions of counts, differences and residuals, without this export's names.

In whole numbers and fractions as long as that is possible, so that nothing is rounded before the last step.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import optimize, stats

Json = dict[str, Any]
Cell = tuple[str, str, int]  # participant, source image, hit (1 or 0) or residual

SMALLEST = sys.float_info.min  # a p-value below this is given as this


def wilson(count: int, n: int, effective: float) -> tuple[float, float]:
    """Wilson's 95 % interval of count / n, as if from `effective` independent answers."""
    z, p = float(stats.norm.ppf(0.975)), count / n
    center = p + z * z / (2 * effective)
    half = z * math.sqrt(p * (1 - p) / effective + z * z / (4 * effective**2))
    scale = 1 + z * z / effective
    return (
        0.0 if count == 0 else (center - half) / scale,
        1.0 if count == n else (center + half) / scale,
    )


def deff(cells: Sequence[Cell]) -> float:
    """Variance of the rate of hits over that of as many independent answers, at least 1.

    Times (t / z)^2 of the smaller number of clusters, as few clusters show the variance only roughly.
    """
    n, count = len(cells), sum(hit for _, _, hit in cells)
    if count in (0, n):
        return 1.0  # no spread to estimate it from
    spread, participants, images = two_way([(who, image, hit * n - count) for who, image, hit in cells])
    df = min(participants, images) - 1
    few = float(stats.t.ppf(0.975, df) / stats.norm.ppf(0.975)) if df else 1.0
    return max(1.0, float(spread / (n * count * (n - count))) * few**2)  # the residuals were times n^2


def clopper_pearson(count: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of count / n independent answers."""
    return (
        float(stats.beta.ppf(0.025, count, n - count + 1)) if count else 0.0,
        float(stats.beta.ppf(0.975, count + 1, n - count)) if count < n else 1.0,
    )


def two_way(residuals: Sequence[Cell]) -> tuple[Fraction, int, int]:
    """Two-way cluster-robust variance of the sum of the residuals; how many participants and images there are."""

    def one_way(name: Callable[[Cell], object]) -> tuple[Fraction, int]:
        sums: defaultdict[object, int] = defaultdict(int)
        for cell in residuals:
            sums[name(cell)] += cell[2]
        clusters = len(sums)
        if clusters < 2:
            return Fraction(0), clusters
        return Fraction(clusters, clusters - 1) * sum(s * s for s in sums.values()), clusters

    by_participant, participants = one_way(lambda cell: cell[0])
    by_image, images = one_way(lambda cell: cell[1])
    by_both, _ = one_way(lambda cell: cell[:2])
    return max(by_participant + by_image - by_both, by_participant, by_image), participants, images


def paired_t(differences: Sequence[Fraction]) -> Json:
    """Mean difference with its paired t interval; none where the differences are all equal."""
    n = len(differences)
    if n == 0:
        return {"difference": None, "low": None, "high": None}
    mean = sum(differences, Fraction(0)) / n
    if len(set(differences)) == 1:
        return {"difference": float(mean), "low": None, "high": None}
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt(variance / n)
    return {"difference": float(mean), "low": float(mean) - half, "high": float(mean) + half}


def sign_flip(differences: Sequence[Fraction]) -> Json:
    """p: the share of all patterns of signs with a sum at least as far from 0; p_mid counts equal ones by half."""
    if not differences:
        return {"p": None, "p_mid": None, "p_exact": True}
    scale = math.lcm(*(d.denominator for d in differences))
    whole = [int(abs(d) * scale) for d in differences if d]
    divisor = math.gcd(*whole) or 1
    sizes = [size // divisor for size in whole]
    observed, total = int(abs(sum(differences, Fraction(0))) * scale) // divisor, sum(sizes)
    # A pattern whose negative part has the size t sums to total - 2 t.
    tail = (total - observed) // 2
    step = -(-(tail + 1) // min(2**22, 2**31 // max(1, len(sizes))))
    if step > 1:  # too many distinct sums: the program then gives upper bounds, on a coarser grid
        return coarse_sign_flip(sizes, tail, step) | {"p_exact": False}
    # ways(t), how many patterns have the negative part t, for all t at once: the digits of the product of all
    # (1 + B^size), in a base B that no count reaches.
    width = len(sizes) // 8 + 1  # bytes a digit
    product = 1
    for size in sizes:
        product += product << (8 * width * size)
    digits = product.to_bytes(width * (total + 1), "little")
    more = equal = 0
    for t in range(total + 1):
        distance = abs(total - 2 * t)
        if distance >= observed:
            ways = int.from_bytes(digits[t * width : (t + 1) * width], "little")
            more += ways if distance > observed else 0
            equal += ways if distance == observed else 0
    patterns = 2 ** len(sizes)
    return {
        "p": max(SMALLEST, float(Fraction(more + equal, patterns))),
        "p_mid": max(SMALLEST, float(Fraction(2 * more + equal, 2 * patterns))),
        "p_exact": True,
    }


def coarse_sign_flip(sizes: Sequence[int], tail: int, step: int) -> Json:
    """Upper bounds on a grid of `step`: sizes rounded down can only put more patterns into the tail."""
    chance = np.zeros(tail // step + 1)  # of each negative part
    chance[0] = 1.0
    for size in sizes:
        shift = size // step
        moved = np.zeros_like(chance)
        if shift < chance.size:
            moved[shift:] = chance[: chance.size - shift]
        chance = (chance + moved) / 2
    at_most, below = float(chance.sum()), float(chance[: (tail - 1) // step + 1].sum())
    return {
        "p": min(1.0, max(SMALLEST, 2 * at_most)),
        "p_mid": min(1.0, max(SMALLEST, at_most + below)),
    }


def new_images(of_a: Sequence[Cell], of_b: Sequence[Cell]) -> float | None:
    """Two-way cluster-robust t-test of the difference of two pooled rates; cells are (participant, image, hit)."""
    n_a, n_b = len(of_a), len(of_b)
    if not (n_a and n_b):
        return None
    count_a, count_b = (sum(hit for _, _, hit in side) for side in (of_a, of_b))
    # Residuals of both sides times (n_a n_b)^2, so that they are whole numbers.
    residuals = [(who, image, (hit * n_a - count_a) * n_b**2) for who, image, hit in of_a]
    residuals += [(who, image, (count_b - hit * n_b) * n_a**2) for who, image, hit in of_b]
    spread, participants, images = two_way(residuals)
    df = min(participants, images) - 1
    if df < 1 or spread == 0:
        return None
    difference = Fraction(count_a, n_a) - Fraction(count_b, n_b)
    t = math.sqrt(difference**2 / (spread / (n_a * n_b) ** 4))
    return max(SMALLEST, 2 * float(stats.t.sf(t, df)))


def fisher(count_a: int, n_a: int, count_b: int, n_b: int) -> float | None:
    """Both margins fixed: the chance of all tables no likelier than this one."""
    if not (n_a and n_b):
        return None
    both = count_a + count_b
    lowest, highest = max(0, both - n_b), min(n_a, both)
    ways = [math.comb(n_a, lowest) * math.comb(n_b, both - lowest)]  # of drawing x = lowest, lowest + 1, ...
    for x in range(lowest, highest):
        ways.append(ways[-1] * (n_a - x) * (both - x) // ((x + 1) * (n_b - both + x + 1)))
    unlikely = sum(way for way in ways if way <= ways[count_a - lowest])
    return max(SMALLEST, float(Fraction(unlikely, sum(ways))))


def pooled_z(count_a: int, n_a: int, count_b: int, n_b: int) -> float | None:
    both, n = count_a + count_b, n_a + n_b
    if not (n_a and n_b and 0 < both < n):
        return None
    pooled = Fraction(both, n)
    difference = Fraction(count_a, n_a) - Fraction(count_b, n_b)
    variance = pooled * (1 - pooled) * (Fraction(1, n_a) + Fraction(1, n_b))
    return max(SMALLEST, 2 * float(stats.norm.sf(math.sqrt(difference**2 / variance))))


def holm(comparisons: Sequence[Json]) -> None:
    """Fill in p_holm, over all comparisons but the primary one."""
    family = sorted(
        (c for c in comparisons if not c["primary"] and c["p"] is not None), key=lambda c: float(c["p"])
    )
    largest = 0.0
    for rank, c in enumerate(family):
        largest = max(largest, min(1.0, c["p"] * (len(family) - rank)))
        c["p_holm"] = largest


def boundaries(sizes: Sequence[int]) -> list[float]:
    """The nominal p of each look (O'Brien and Fleming): |Z| >= C / sqrt(share), false alarms 5 % in all."""
    shares = [size / sizes[-1] for size in sizes]
    if len(shares) == 1:
        return [0.05]
    bracket = float(stats.norm.isf(0.026)), float(stats.norm.isf(0.01))
    c = optimize.brentq(lambda c: crossing(c, shares) - 0.05, *bracket, xtol=1e-14, rtol=1e-14)
    return [2 * float(stats.norm.sf(c / math.sqrt(share))) for share in shares]


def crossing(c: float, shares: Sequence[float]) -> float:
    """The chance that a Brownian motion is outside of (-c, c) at one of the times `shares`."""
    steps = np.sqrt(np.diff([0.0, *shares]))
    nodes, weights = np.polynomial.legendre.leggauss(60 + math.ceil(8 * c / steps.min()))
    x, w = c * nodes, c * weights
    crossed = 2 * float(stats.norm.sf(c / steps[0]))
    density = stats.norm.pdf(x, scale=steps[0])  # at x and not crossed before
    for step in steps[1:]:
        out = stats.norm.sf(c, loc=x, scale=step) + stats.norm.cdf(-c, loc=x, scale=step)
        crossed += float((w * density) @ out)
        density = stats.norm.pdf(x[:, None], loc=x[None, :], scale=step) @ (w * density)
    return crossed
