"""Intervals against statsmodels, formulas written out, and the truth in simulations."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]
from statsmodels.stats.weightstats import DescrStatsW  # type: ignore[import-untyped]

from ml import intervals

RANDOM = np.random.default_rng(0)


def outcomes(count: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.arange(n) < count


@pytest.mark.parametrize(("count", "n"), [(0, 10), (10, 10), (3, 10), (731, 1000), (1, 1)])
def test_shares_have_wilson_intervals(count: int, n: int) -> None:
    found = intervals.share(outcomes(count, n))
    low, high = proportion_confint(count, n, method="wilson")
    assert (found.value, found.n) == (count / n, n)
    assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 1)), abs=1e-9)


def test_means_have_students_intervals() -> None:
    values = RANDOM.normal(3, 2, 40)
    found = intervals.mean(values)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean())


def test_differences_of_right_and_wrong_are_bonett_and_prices() -> None:
    a, b = RANDOM.random(300) < 0.8, RANDOM.random(300) < 0.7
    found = intervals.difference(a, b)
    # The published formula: one more in either discordant cell, and Wald's interval; with t where it has z.
    n = 300
    ahead, behind = ((a & ~b).sum() + 1) / (n + 2), ((b & ~a).sum() + 1) / (n + 2)
    reach = stats.t.ppf(0.975, n + 1) * math.sqrt((ahead + behind - (ahead - behind) ** 2) / (n + 1))
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx((ahead - behind - reach, ahead - behind + reach))


def test_where_all_images_agree_the_interval_shrinks_with_their_number_but_is_no_point() -> None:
    widths = []
    for n in (10, 100, 1000):
        same = intervals.difference(np.ones(n), np.ones(n))
        assert same.low < same.value == 0 < same.high
        perfect = intervals.mean_share(np.ones(n))
        assert perfect.low < perfect.value == perfect.high == 1
        widths.append((same.high - same.low, 1 - perfect.low))
    assert widths == sorted(widths, reverse=True)
    assert max(widths[-1]) < 0.02


def test_mean_shares_have_students_interval_after_two_more_images_of_0_and_two_of_1() -> None:
    found = intervals.mean_share(np.array([0.25, 0.5, 1.0]))
    # Of 0.25, 0.5, 1, 0, 0, 1, 1: sum 3.75, sum of squares 3.3125, 6 degrees of freedom.
    center, error = 3.75 / 7, math.sqrt((3.3125 - 3.75**2 / 7) / 6 / 7)
    reach = 2.4469118511 * error
    assert (found.value, found.n) == (1.75 / 3, 3)
    assert (found.low, found.high) == pytest.approx((center - reach, center + reach), rel=1e-9)


def test_no_interval_reaches_beyond_what_is_possible() -> None:
    none, all_ = np.zeros(5), np.ones(5)
    assert intervals.mean_share(none).low == 0 < intervals.mean_share(none).high < 1
    assert intervals.mean_share(all_).high == 1 > intervals.mean_share(all_).low > 0
    assert intervals.difference(all_, none).high == 1 > intervals.difference(all_, none).low
    assert intervals.difference(none, all_).low == -1 < intervals.difference(none, all_).high


@pytest.mark.parametrize("truth", [0.02, 0.5, 0.9])
def test_mean_shares_hold_the_truth_as_often_as_they_say(truth: float) -> None:
    covered = 0
    for _ in range(300):
        # Each image is right at a few of four epsilons, alike within the image.
        ease = RANDOM.random(60) < truth
        found = intervals.mean_share((ease[:, None] & (RANDOM.random((60, 4)) < 0.999)).mean(1))
        covered += found.low <= truth * 0.999 <= found.high
    assert covered >= 0.92 * 300


def test_medians_have_the_interval_of_order_statistics() -> None:
    values = RANDOM.lognormal(size=15)
    found = intervals.median(list(values))
    ordered = np.sort(values)
    # The largest k for which fewer than k of 15 values lie below the median in at most 2.5 % of samples.
    k = max(k for k in range(1, 8) if stats.binom.cdf(k - 1, 15, 0.5) <= 0.025)
    assert (found.value, found.low, found.high) == (np.median(values), ordered[k - 1], ordered[15 - k])
    slowed = np.where(values == values.max(), 1e6, values)
    assert intervals.median(list(slowed)) == found
