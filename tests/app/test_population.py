"""The population model: base rates that average to what was asked, effects that are shared as they should be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy.special import expit
from scipy.stats import norm

from app.population import (
    MOST,
    NO_SPREAD,
    Spread,
    average,
    chances,
    draw_images,
    draw_participants,
    intercept,
)


@pytest.mark.parametrize("center", [-8.0, -1.3, 0.0, 2.5])
@pytest.mark.parametrize("sd", [0.1, 1.3, 5.0, 20.0])
def test_average_is_the_integral_over_a_normal_effect(center: float, sd: float) -> None:
    # In halves about the step at -center / sd, which quadrature would otherwise miss.
    step = -center / sd
    halves = [
        integrate.quad(lambda z: expit(center + sd * z) * norm.pdf(z), low, high, epsabs=1e-13)[0]
        for low, high in ((-14, step), (step, 14))
    ]
    assert average(center, sd) == pytest.approx(sum(halves), abs=1e-10)


@given(rate=st.floats(1e-6, 1 - 1e-6), sd=st.floats(0, MOST * math.sqrt(6)))
def test_intercept_undoes_average(rate: float, sd: float) -> None:
    assert average(intercept(rate, sd), sd) == pytest.approx(rate, rel=1e-9, abs=1e-12)


def test_certain_rates_and_no_rates() -> None:
    assert intercept(0, 1.0) == -math.inf
    assert intercept(1, 1.0) == math.inf
    assert chances(np.array([-math.inf, math.inf]), np.array([5.0]), np.array([-9.0])).tolist() == [0.0, 1.0]
    assert intercept(0.5, 3.0) == pytest.approx(0, abs=1e-12)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="not a rate"):
            intercept(wrong, 1.0)


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf, MOST + 1])
def test_a_spread_is_checked(wrong: float) -> None:
    with pytest.raises(ValueError, match="spread of image x model"):
        Spread(image_model=wrong)


def test_total_is_the_spread_of_one_answer() -> None:
    assert NO_SPREAD.total == 0
    assert Spread(3, 4, 0, 0, 0, 0).total == 5


def test_effects_have_the_asked_spread_and_are_shared_by_whom_they_belong_to() -> None:
    rng = np.random.default_rng(1)
    spread = Spread(0.5, 0.4, 0.7, 0.3, 0.8, 0.6)
    people = draw_participants(rng, 2000, 6, 2, spread)
    assert people.shape == (2000, 6, 2)
    assert people.std() == pytest.approx(math.hypot(0.5, 0.4), rel=0.03)
    shared = np.cov(people[..., 0].ravel(), people[..., 1].ravel())[0, 1]
    assert shared == pytest.approx(0.5**2, rel=0.1)

    images = draw_images(rng, 20000, np.array([4, 9, 4]), 2, spread)
    assert images.shape == (20000, 3, 2)
    assert images.std() == pytest.approx(math.sqrt(0.7**2 + 0.3**2 + 0.8**2 + 0.6**2), rel=0.03)
    covariance = np.cov(
        images.reshape(20000, 6).T
    )  # rows: pair 0 model 0, pair 0 model 1, pair 1 model 0, ...
    one_pair, one_image, across, strangers = covariance[0, [1, 4, 5, 2]]
    assert one_pair == pytest.approx(0.7**2 + 0.8**2, abs=0.05)
    assert one_image == pytest.approx(0.7**2 + 0.3**2, abs=0.05)
    assert across == pytest.approx(0.7**2, abs=0.05)
    assert strangers == pytest.approx(0, abs=0.05)


def test_rates_over_new_participants_and_images_are_the_ones_asked_for() -> None:
    rng = np.random.default_rng(2)
    spread = Spread(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    rates = np.array([0.02, 0.26, 0.418])
    base = np.array([intercept(rate, spread.total) for rate in rates])
    people = draw_participants(rng, 4000, 10, 3, spread)
    images = draw_images(rng, 4000, np.repeat(np.arange(5), 2), 3, spread)
    found = chances(base, people, images).mean((0, 1))
    assert found == pytest.approx(rates, abs=0.01)


def test_the_same_seed_draws_the_same() -> None:
    first, second = (draw_participants(np.random.default_rng(3), 2, 3, 2, Spread()) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.any(draw_images(np.random.default_rng(3), 2, np.arange(3), 2, NO_SPREAD))
