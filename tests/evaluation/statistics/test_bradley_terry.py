"""Strengths, by what they must be."""

from __future__ import annotations

import numpy as np
import pytest

from gipo_mc.evaluation.statistics.bradley_terry import ELO, strengths


def odds(strength: np.ndarray) -> np.ndarray:
    return np.exp(strength)


def test_two_policies_have_the_odds_of_their_wins():
    """30 wins and 10 losses, and the tie that is added: odds of 30.5 to 10.5."""
    net, games = np.array([[0.0, 20.0], [-20.0, 0.0]]), np.array([[0.0, 40.0], [40.0, 0.0]])
    found = strengths(net, games)
    assert found[0] == 0
    assert odds(found[1]) == pytest.approx(10.5 / 30.5)


def test_a_star_is_a_comparison_each():
    net = np.array([[0.0, 20.0, -6.0], [-20.0, 0.0, 0.0], [6.0, 0.0, 0.0]])
    games = np.array([[0.0, 40.0, 30.0], [40.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    assert odds(strengths(net, games)) == pytest.approx([1.0, 10.5 / 30.5, 18.5 / 12.5])


def test_three_policies_that_all_met_agree_with_their_scores():
    """At the maximum, expected and seen scores of every policy are equal."""
    net = np.array([[0.0, 12.0, 3.0], [-12.0, 0.0, -8.0], [-3.0, 8.0, 0.0]])
    games = np.array([[0.0, 20.0, 15.0], [20.0, 0.0, 40.0], [15.0, 40.0, 0.0]])
    found = strengths(net, games)
    expected = (games + (games > 0)) * np.tanh((found[:, None] - found[None, :]) / 2)
    assert expected.sum(axis=1) == pytest.approx(net.sum(axis=1), abs=1e-8)
    assert found[1] < found[2] < found[0] == 0


def test_a_policy_that_never_wins_is_finite_and_the_mirror_exact():
    generator = np.random.default_rng(0)
    net = np.zeros((50, 4, 4))
    games = np.zeros((50, 4, 4))
    for place in (1, 2, 3):
        count = generator.integers(0, 60, 50)
        games[:, 0, place] = games[:, place, 0] = count
        net[:, 0, place] = count if place == 1 else generator.integers(-30, 30, 50) * (count > 30)
        net[:, place, 0] = -net[:, 0, place]
    found = strengths(net, games)
    assert np.isfinite(found).all() and (found[:, 1] <= 0).all()
    assert (strengths(-net, games) == -found).all()
    assert odds(found[0, 1]) == pytest.approx(0.5 / (games[0, 0, 1] + 0.5))


def test_a_policy_that_met_nobody_is_refused():
    games = np.zeros((3, 3))
    games[0, 1] = games[1, 0] = 5
    with pytest.raises(ValueError, match=r"\[2\]"):
        strengths(np.zeros((3, 3)), games)


def test_elo():
    assert np.log(10) * ELO == pytest.approx(400)
