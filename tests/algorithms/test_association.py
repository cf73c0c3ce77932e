"""Correlation, AUC and mutual information against brute force and known values."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.algorithms.association import auc, correlation, domain_auc, mutual_information, partial_correlation


def test_correlation():
    x = torch.tensor([1.0, 2.0, 4.0])
    assert correlation(x, 3 * x + 1) == pytest.approx(1.0)
    assert correlation(x, -x) == pytest.approx(-1.0)
    # x - mean = (-4, -1, 5)/3, y - mean = (-1, 0, 1): 9/3 / sqrt(42/9 * 2)
    assert correlation(x, torch.tensor([0, 1, 2])) == pytest.approx(3 / math.sqrt(42 / 9 * 2))
    assert correlation(x, torch.full((3,), 0.1)) == 0.0
    assert correlation(x[:1], x[:1]) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=14))
def test_auc_is_the_share_of_pairs_in_order(rows):
    positive = [score for score, label in rows if label]
    negative = [score for score, label in rows if not label]
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative)]
    expected = sum(pairs) / len(pairs) if pairs else 0.5
    scores = torch.tensor([float(score) for score, _ in rows])
    assert auc(scores, torch.tensor([label for _, label in rows])) == pytest.approx(expected)


def test_domain_auc_ignores_which_label_is_which():
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.85, 0.15]])
    domains = ["easy", "easy", "hard", "hard"]  # 3 of 4 pairs in order
    assert domain_auc(probs, domains) == pytest.approx(0.75)
    assert domain_auc(probs.flip(1), domains) == pytest.approx(0.75)
    assert domain_auc(probs, ["hard", "hard", "easy", "easy"]) == pytest.approx(0.75)
    assert domain_auc(probs, ["one"] * 4) == 0.5
    assert domain_auc(torch.eye(3), ["a", "b", "c"]) == 1.0
    # a is told from b only by what it lacks: the first group
    lacking = torch.tensor([[0.2, 0.5, 0.3], [0.2, 0.3, 0.5], [0.6, 0.1, 0.3], [0.6, 0.3, 0.1]])
    assert domain_auc(lacking, ["a", "a", "b", "b"]) == 1.0


def test_mutual_information():
    assert mutual_information(torch.eye(2)[[0, 0, 1, 1]], ["a", "a", "b", "b"]) == pytest.approx(math.log(2))
    assert mutual_information(torch.full((4, 2), 0.5), ["a", "a", "b", "b"]) == pytest.approx(0.0, abs=1e-12)
    assert mutual_information(torch.eye(2)[[0, 0, 0, 0]], ["a", "a", "b", "b"]) == 0.0  # collapsed
    assert mutual_information(torch.zeros(0, 2), []) == 0.0
    # joint (3/8, 1/8; 1/8, 3/8): 6/8 ln(3/2) + 2/8 ln(1/2)
    soft = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    assert mutual_information(soft, ["a", "b"]) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_partial_correlation_takes_the_third_out():
    g = torch.Generator().manual_seed(0)
    length, noise, reward = torch.randn(3, 500, generator=g, dtype=torch.float64)
    follows = length + 0.1 * noise  # of the length, and of nothing else
    rewarded = length + reward
    assert correlation(follows, rewarded) > 0.6
    assert abs(partial_correlation(follows, rewarded, length)) < 0.1
    assert partial_correlation(length + reward, rewarded, length) == pytest.approx(1.0)
    # Against the correlation of what is left after regressing both on the third.
    left = [x - x.mean() - (x - x.mean()) @ (length - length.mean()) / (length - length.mean()).square().sum()
            * (length - length.mean()) for x in (follows, rewarded)]  # fmt: skip
    assert partial_correlation(follows, rewarded, length) == pytest.approx(correlation(*left))
    assert partial_correlation(length, rewarded, length) == 0.0


def test_the_three_of_a_constant():
    constant, rising = torch.ones(4), torch.arange(4.0)
    assert partial_correlation(constant, rising, rising) == 0.0
    assert partial_correlation(rising, rising, constant) == pytest.approx(1.0)
