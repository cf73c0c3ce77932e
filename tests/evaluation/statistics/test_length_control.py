"""The margin at equal lengths: what it recovers, when it refuses, and that it is odd in the sides."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gipo_mc.evaluation.statistics.bootstrap import Draws
from gipo_mc.evaluation.statistics.length_control import Fit, fit, margins_drawn, odd_tanh
from gipo_mc.evaluation.statistics.outcomes import GRID


def judged(count: int, constant: float, slope: float, longer: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(margins of one game each, differences of lengths) under a judge whose odds are exp(constant + slope x)."""
    generator = np.random.default_rng(seed)
    difference = generator.normal(longer, 60, count).round()
    x = np.tanh(difference / difference.std())
    won = generator.random(count) < 1 / (1 + np.exp(-(constant + slope * x)))
    return np.where(won, 1.0, -1.0), difference


def fitted(margin: np.ndarray, difference: np.ndarray) -> Fit:
    found = fit(margin, difference)
    assert isinstance(found, Fit)
    return found


def test_a_preference_for_length_is_taken_out():
    """Two equal policies, ours longer, a judge who likes length: 24 points ahead, 0 at equal lengths."""
    margin, difference = judged(4000, 0.0, 1.5, longer=40)
    found = fitted(margin, difference)
    assert margin.mean() > 0.2
    assert abs(found.margin) < 0.05
    assert found.slope == pytest.approx(1.5, abs=0.15)
    better = fitted(*judged(4000, 0.6, 1.5, longer=-40))
    assert better.margin == pytest.approx(math.tanh(0.3), abs=0.05)


def test_without_a_preference_the_margin_stays():
    margin, difference = judged(3000, 0.5, 0.0, longer=50)
    assert fitted(margin, difference).margin == pytest.approx(margin.mean(), abs=0.03)


def test_four_pairs_by_hand():
    """Lengths differ by -1 or 1; the mean margin is -0.5 at the one and 0.5 + 0.25 at the other."""
    difference = np.array([-1.0, -1.0, 1.0, 1.0])
    found = fitted(np.array([-1.0, 0.0, 1.0, 0.5]), difference)
    below, above = math.atanh(-0.5), math.atanh(0.75)
    assert found.constant == pytest.approx(below + above)
    assert found.slope == pytest.approx((above - below) / math.tanh(1.0))


def test_exchanging_the_sides_negates_it_to_the_bit():
    generator = np.random.default_rng(0)
    margin = generator.choice([-1.0, -0.5, 0.0, 0.5, 1.0], size=500)
    difference = generator.normal(13, 60, 500)
    one, other = fitted(margin, difference), fitted(-margin, -difference)
    assert (one.constant, one.slope, one.margin) == (-other.constant, other.slope, -other.margin)
    draws = Draws(500, 300, 1)
    drawn = margins_drawn(one, draws.sums(one.columns_N5))
    assert (drawn == -margins_drawn(other, draws.sums(other.columns_N5))).all()
    x = np.linspace(-30, 30, 10_001)
    assert (odd_tanh(-x) == -odd_tanh(x)).all()


def test_one_newton_step_stands_for_a_new_fit():
    margin, difference = judged(300, 0.4, 1.0, longer=30, seed=2)
    found = fitted(margin, difference)
    generator, steps, fits = np.random.default_rng(0), [], []
    for _ in range(40):
        rows = generator.integers(0, 300, 300)
        steps.append(margins_drawn(found, found.columns_N5[rows].sum(axis=0)[None])[0])
        again = fitted(margin[rows], difference[rows])
        fits.append(again.margin)
    assert np.std(fits) > 0.03
    assert np.abs(np.subtract(steps, fits)).max() < 0.1 * np.std(fits) + 0.005
    assert (found.columns_N5 == np.rint(found.columns_N5)).all() and np.abs(found.columns_N5).max() <= 2 * GRID


@pytest.mark.parametrize(
    ("margin", "difference", "reason"),
    [
        ([1.0, -1.0, 1.0], [0.0, 0.0, 0.0], "same length in every pair"),
        ([1.0, -1.0, 1.0], [7.0, 7.0, 7.0], "ours|longer one in every pair"),
        ([1.0, -1.0, 1.0], [-7.0, -8.0, -9.0], "shorter one in every pair"),
        ([1.0, 1.0, 1.0], [-7.0, 8.0, 9.0], "one policy wins every pair"),
        ([-1.0, 1.0, 1.0, -1.0], [-7.0, 8.0, 9.0, -3.0], "go together too closely"),
        ([0.0, 1.0, 1.0, -1.0], [0.0, 8.0, 9.0, -3.0], "go together too closely"),
    ],
)
def test_where_there_is_no_fit_it_says_why(margin: list[float], difference: list[float], reason: str):
    found = fit(np.array(margin), np.array(difference))
    assert isinstance(found, str) and any(words in found for words in reason.split("|"))
    mirrored = fit(-np.array(margin), -np.array(difference))
    assert isinstance(mirrored, str)


def test_all_ties_are_a_margin_of_zero():
    found = fitted(np.zeros(5), np.array([1.0, -2.0, 3.0, 4.0, 0.0]))
    assert (found.margin, found.slope) == (0.0, 0.0)


def test_a_draw_with_one_length_has_no_margin():
    found = fitted(np.array([-1.0, 0.0, 1.0, 0.5]), np.array([-1.0, -1.0, 1.0, 1.0]))
    assert np.isnan(margins_drawn(found, 4 * found.columns_N5[:1])).all()
