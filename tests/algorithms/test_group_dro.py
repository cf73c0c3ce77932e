"""Group-DRO: the exponentiated gradient and the sequence weights, by hand and against autograd."""

import math

import pytest
import torch

from gipo_mc.algorithms.group_dro import sequence_weights, update_weights
from gipo_mc.algorithms.group_invariance import group_statistics, moments

PROBS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
SIGNAL = torch.tensor([1.0, 0.0, -1.0, -2.0], dtype=torch.float64)  # R = (0, -2)


def whole(probs, signal):
    return moments(*group_statistics(probs, signal), len(signal), "size")


def test_the_worse_group_grows():
    grown = update_weights([0.5, 0.5], whole(PROBS, SIGNAL), 0.1, 0.0)
    assert grown == pytest.approx([1 / (1 + math.exp(0.2)), math.exp(0.2) / (1 + math.exp(0.2))])
    assert update_weights([0.3, 0.7], whole(PROBS, SIGNAL), 0.0, 0.0) == pytest.approx([0.3, 0.7])
    huge = update_weights([0.5, 0.5], whole(PROBS, 1e6 * SIGNAL), 0.1, 0.0)
    assert huge == pytest.approx([0.0, 1.0])
    held = update_weights([0.5, 0.5], whole(PROBS, SIGNAL), 0.1, 0.3)  # the second group is too small to be believed
    assert held == pytest.approx([0.5, 0.5])


def test_sequence_weights_by_hand():
    batch = whole(PROBS, SIGNAL)
    assert sequence_weights([0.75, 0.25], batch, PROBS, 0.0).tolist() == pytest.approx([1.0] * 4)  # q = share: PPO
    assert sequence_weights([0.5, 0.5], batch, PROBS, 0.0).tolist() == pytest.approx([2 / 3] * 3 + [2.0])
    assert sequence_weights([0.5, 0.5], batch, PROBS, 0.3).tolist() == pytest.approx([4 / 3] * 3 + [0.0])


def test_weights_are_the_gradient_of_the_weighted_objectives():
    probs = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    signal = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    (expected,) = torch.autograd.grad((q * (probs * signal[:, None]).sum(0) / probs.sum(0)).sum(), signal)
    weights = sequence_weights(q.tolist(), whole(probs, signal.detach()), probs, 0.0)
    torch.testing.assert_close(weights / 9, expected)
    assert float(weights.mean()) == pytest.approx(1.0)


def test_one_group_and_no_group_large_enough_are_ppo():
    one = torch.ones(4, 1, dtype=torch.float64)
    assert torch.equal(sequence_weights([1.0], whole(one, SIGNAL), one, 0.05), torch.ones(4, dtype=torch.float64))
    even = torch.full((4, 4), 0.25, dtype=torch.float64)
    weights = sequence_weights([0.25] * 4, whole(even, SIGNAL), even, 0.4)
    assert torch.equal(weights, torch.ones(4, dtype=torch.float64))
