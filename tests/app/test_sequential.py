"""O'Brien-Fleming boundaries against published tables, a simulation and a multivariate normal distribution."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad
from scipy.special import ndtr
from scipy.stats import binomtest, norm

from app.clusters import Floats
from app.sequential import SMALLEST_STEP, boundaries

# Jennison and Turnbull (2000), table 2.3, two-sided alpha 0.05 (and O'Brien and Fleming 1979): z at each look.
PUBLISHED = {
    1: [1.960],
    2: [2.797, 1.977],
    3: [3.471, 2.454, 2.004],
    4: [4.049, 2.863, 2.337, 2.024],
    5: [4.562, 3.226, 2.634, 2.281, 2.040],
}
UNEQUAL = [0.2, 0.55, 0.6, 1.0]


def equal(looks: int) -> list[float]:
    return [(k + 1) / looks for k in range(looks)]


def z(boundary: list[float]) -> Floats:
    return np.asarray(norm.isf(np.array(boundary) / 2))


@pytest.mark.parametrize("looks", PUBLISHED)
def test_the_published_boundaries(looks: int) -> None:
    assert z(boundaries(equal(looks))) == pytest.approx(PUBLISHED[looks], abs=6e-4)


def test_one_look_is_alpha() -> None:
    assert boundaries([1]) == [0.05]
    assert boundaries([1.0], 0.01) == [0.01]


@pytest.mark.parametrize("fractions", [[0.2, 0.55, 1.0], [0.9, 0.98, 1.0]])
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_another_integration_finds_alpha(fractions: list[float], alpha: float) -> None:
    found = z(boundaries(fractions, alpha))
    c = float(found[-1])
    assert found * np.sqrt(fractions) == pytest.approx(c, abs=1e-9), "flat in Brownian motion"
    first, second, third = (float(s) for s in np.sqrt(np.diff(fractions, prepend=0)))

    def stays(b: float, a: float) -> float:
        paths = math.exp(-((a / first) ** 2) / 2 - ((b - a) / second) ** 2 / 2)
        return paths * float(ndtr((c - b) / third) - ndtr((-c - b) / third)) / (2 * math.pi * first * second)

    inside, _ = dblquad(stays, -c, c, -c, c, epsabs=1e-9)
    assert 1 - inside == pytest.approx(alpha, abs=1e-8)


def test_brownian_motion_crosses_as_often_as_alpha_says() -> None:
    runs = 200_000
    steps = np.diff(UNEQUAL, prepend=0)
    paths = np.cumsum(np.random.default_rng(1).normal(size=(runs, 4)) * np.sqrt(steps), axis=1)
    p = 2 * norm.sf(np.abs(paths) / np.sqrt(UNEQUAL))
    crossed = int((p <= boundaries(UNEQUAL)).any(axis=1).sum())
    assert binomtest(crossed, runs, 0.05).pvalue > 1e-3
    naive = int((p <= 0.05).any(axis=1).sum())
    assert naive > 0.1 * runs, "what the boundaries prevent"


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, 199), max_size=9), st.floats(0.001, 0.5))
def test_boundaries_rise_to_no_more_than_alpha_and_sum_to_no_less(looks: set[int], alpha: float) -> None:
    found = boundaries([n / 200 for n in sorted(looks)] + [1], alpha)
    assert len(found) == len(looks) + 1
    assert all(a < b or b == 0 for a, b in pairwise(found)), "strict early, lenient late"
    assert found[-1] <= alpha * (1 + 1e-9)
    assert math.fsum(found) >= alpha * (1 - 1e-9), "Bonferroni"


def test_a_look_hardly_before_the_last_hardly_costs() -> None:
    close = boundaries([1 - SMALLEST_STEP, 1])
    assert 0.0495 < close[0] < close[1] < 0.05
    early = boundaries([SMALLEST_STEP, 1])
    assert early == [0, pytest.approx(0.05, abs=1e-9)]


@pytest.mark.parametrize(
    "fractions",
    [
        [],
        [0.5],
        [0, 1],
        [-0.5, 1],
        [0.5, 0.5, 1],
        [0.7, 0.5, 1],
        [0.5, 1.5],
        [math.nan, 1],
        [1, 1],
        [1e-9, 1],
    ],
)
def test_fractions_that_do_not_rise_to_one_are_refused(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="information fraction"):
        boundaries(fractions)


@pytest.mark.parametrize("alpha", [0, 1, -0.05, math.nan])
def test_an_alpha_outside_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        boundaries([0.5, 1], alpha)
