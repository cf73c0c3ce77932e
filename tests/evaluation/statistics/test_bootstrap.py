"""Intervals: against formulas, at their edges, mirrored, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gipo_mc.evaluation.statistics.bootstrap import Draws, interval, ratio, simultaneous

SHARE = (0.0, 1.0)


def share_of(values: np.ndarray, draws: int = 4000, seed: int = 0) -> tuple[float, np.ndarray]:
    columns = np.stack([values, np.ones_like(values)], axis=1)
    sums = Draws(len(values), draws, seed).sums(columns)
    return float(values.mean()), ratio(sums[:, 0], sums[:, 1])


def test_draws_are_whole_resamples_and_the_same_for_every_column():
    columns = np.array([[1.0, 2.0, 1.0], [1.0, 4.0, 0.0], [1.0, 8.0, 0.0]])
    sums = Draws(3, 700, seed=5).sums(columns)
    assert (sums[:, 0] == 3).all()
    assert sums[:, 1].min() == 6 and sums[:, 1].max() == 24
    # The second column tells how often each was drawn; the third is how often the first was.
    first_only = sums[:, 1] == 6
    assert (sums[first_only, 2] == 3).all()
    assert abs(sums[:, 2].mean() - 1) < 0.1
    again = Draws(3, 700, seed=5).sums(columns[:, 1:2])
    assert (again[:, 0] == sums[:, 1]).all()
    assert (Draws(3, 700, seed=6).sums(columns) != sums).any()
    with pytest.raises(ValueError, match="needs a conversation"):
        Draws(0, 10, 0)


def test_an_interval_is_about_that_of_the_normal_distribution():
    values = np.arange(400) % 5 == 0
    found = interval(*share_of(values.astype(float)), SHARE, 400)
    half = 1.96 * math.sqrt(0.2 * 0.8 / 400)
    assert found.value == 0.2
    assert found.low == pytest.approx(0.2 - half, abs=0.004)
    assert found.high == pytest.approx(0.2 + half, abs=0.004)


def test_few_conversations_widen_an_interval():
    values = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    value, drawn = share_of(values)
    plain = np.quantile(drawn, [0.025, 0.975])
    found = interval(value, drawn, SHARE, 8)
    assert found.low < plain[0] and found.high > plain[1]
    assert interval(value, drawn, SHARE, 8000).low > found.low


@pytest.mark.parametrize("count", [1, 2, 100])
def test_without_a_difference_the_interval_is_that_of_what_was_not_seen(count: int):
    value, drawn = share_of(np.zeros(count))
    none = interval(value, drawn, SHARE, count)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == 1 - 0.025 ** (1 / count)  # Clopper-Pearson of 0 of n
    everything = interval(*share_of(np.ones(count)), SHARE, count)
    assert (everything.low, everything.high) == (1 - none.high, 1.0)
    # One winner leaves no less room above than none.
    one = interval(*share_of(np.arange(count) < 1), SHARE, count)
    assert one.high >= none.high


def test_draws_without_any_pair_are_left_out():
    assert ratio(np.array([1.0, 0.0, 3.0]), np.array([2.0, 0.0, 3.0])).tolist() == [0.5, 1.0]
    assert interval(0.5, np.array([]), SHARE, 1).high == 0.5 + (1 - 0.025) * 0.5


def test_mirrored_draws_have_the_mirrored_interval():
    values = np.random.default_rng(0).normal(0.1, 1, 60).round(3)
    value, drawn = share_of(values, draws=999)
    bounds = (-5.0, 5.0)
    one, other = interval(value, drawn, bounds, 60), interval(-value, -drawn, bounds, 60)
    assert (one.low, one.high) == (-other.high, -other.low)
    ((one,), (other,)) = (simultaneous([s * value], [s * drawn], bounds, [60]) for s in (1, -1))
    assert (one.low, one.high) == (-other.high, -other.low)


def test_simultaneous_intervals_hold_for_the_worst_of_six():
    """Six domains of 50 at parity: the worst of them looks 14.5 points worse, and its own interval would be wrong."""
    generator = np.random.default_rng(3)
    runs, missed_alone, missed, worst = 300, 0, 0, 0.0
    for seed in range(runs):
        values = generator.choice([-1.0, 0.0, 1.0], p=[0.33, 0.34, 0.33], size=300)
        domain = np.arange(300) % 6
        columns = np.stack([m for d in range(6) for m in (values * (domain == d), 1.0 * (domain == d))], axis=1)
        sums = Draws(300, 400, seed).sums(columns)
        means = [float(values[domain == d].mean()) for d in range(6)]
        drawn = [sums[:, 2 * d] / sums[:, 2 * d + 1] for d in range(6)]
        place = int(np.argmin(means))
        worst += means[place] / runs
        missed_alone += interval(means[place], drawn[place], (-1, 1), 50).high < 0
        missed += simultaneous(means, drawn, (-1.0, 1.0), [50] * 6)[place].high < 0
    assert worst == pytest.approx(-0.145, abs=0.02)
    assert missed_alone > 0.08 * runs
    assert missed <= 0.04 * runs


def test_a_domain_that_never_differs_does_not_hide_the_others():
    generator = np.random.default_rng(0)
    drawn = [generator.normal(0.2, 0.1, 500), np.zeros(500)]
    wide, none = simultaneous([0.2, 0.0], drawn, (-1.0, 1.0), [40, 40])
    assert wide.low == pytest.approx(0.2 - 0.1 * 1.96 * 1.06, abs=0.03)
    assert none.low == -none.high == -(1 - 0.0125 ** (1 / 40))
