"""Estimates with 95 % intervals, over test images that were drawn independently of each other.

None of the intervals is a single point where all images agree, as n images cannot tell a rate of 0 from a small
one; a verdict that asks "is the difference within this margin?" hangs on that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95

Values = npt.NDArray[np.float64] | npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """An estimate from `n` images (or repetitions) and its interval."""

    value: float
    low: float
    high: float
    n: int


def share(outcomes: npt.NDArray[np.bool_]) -> Estimate:
    """The share of true outcomes (N,), with Wilson's score interval (1927)."""
    count, n = int(outcomes.sum()), len(outcomes)
    interval = stats.binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(count / n, float(interval.low), float(interval.high), n)


def mean_share(shares: Values) -> Estimate:
    """The mean of shares (N,) in [0, 1], one an image; with a t interval after two more images of 0 and two of 1
    (Agresti and Coull, 1998, whose interval it is where every share is 0 or 1, but for t in place of z)."""
    return _t_interval(shares, (0.0, 0.0, 1.0, 1.0), 0.0, 1.0)


def difference(a: Values, b: Values) -> Estimate:
    """The mean of a - b, shares (N,) in [0, 1] of the same N images; with a t interval after one more image of +1
    and one of -1 (Bonett and Price, 2012, whose interval it is where every share is 0 or 1, but for t)."""
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return _t_interval(differences, (1.0, -1.0), -1.0, 1.0)


def mean(values: Values) -> Estimate:
    """The mean of numbers (N,) without bounds, N at least 2, with Student's t interval."""
    return _t_interval(values, ())


def median(values: Sequence[float]) -> Estimate:
    """The median of numbers (N,), N at least 6, with the interval between two of them that holds the median of
    any distribution in at least 95 % of samples. A few repetitions that something else slowed do not move it."""
    test: Any = stats.quantile_test(np.asarray(values), p=0.5)
    low, high = test.confidence_interval(CONFIDENCE)
    return Estimate(float(np.median(values)), float(low), float(high), len(values))


def _t_interval(
    values: Values, added: Sequence[float], lowest: float = -math.inf, highest: float = math.inf
) -> Estimate:
    values = np.asarray(values, dtype=np.float64)
    widened = np.concatenate([values, added])
    center, error = float(widened.mean()), float(widened.std(ddof=1)) / math.sqrt(len(widened))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(widened) - 1)) * error
    return Estimate(
        float(values.mean()), max(center - reach, lowest), min(center + reach, highest), len(values)
    )
