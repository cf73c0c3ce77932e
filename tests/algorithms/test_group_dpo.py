"""Group-DPO: pair weights and the exponentiated gradient, by hand."""

import math

import pytest
import torch

from gipo_mc.algorithms.group_dpo import next_weights, pair_weights

HARD = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
LOSS = torch.tensor([0.2, 0.3, 0.4, 0.9])  # L = (0.3, 0.9), their mean over the batch 0.45


def test_the_group_with_the_higher_loss_grows():
    grown = next_weights([0.75, 0.25], LOSS, HARD, 2.0)
    raised = 0.25 * math.exp(2 * 0.9) / (0.75 * math.exp(2 * 0.3) + 0.25 * math.exp(2 * 0.9))
    assert grown == pytest.approx([1 - raised, raised])
    assert next_weights([0.75, 0.25], LOSS, HARD, 0.0) == [0.75, 0.25]
    assert next_weights([0.5, 0.5], 1e6 * LOSS, HARD, 2.0) == pytest.approx([0.0, 1.0])


def test_inferred_groups_share_pairs():
    probs = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    first, second = (0.8 * 0.2 + 0.4 * 0.9) / 1.2, (0.2 * 0.2 + 0.6 * 0.9) / 0.8
    grown = next_weights([0.5, 0.5], torch.tensor([0.2, 0.9]), probs, 1.0)
    assert grown == pytest.approx([1 / (1 + math.exp(second - first)), 1 / (1 + math.exp(first - second))])
    # pi = (0.6, 0.4), alpha / pi = (5 / 6, 5 / 4)
    weights = pair_weights([0.5, 0.5], [0.6, 0.4], probs)
    assert weights.tolist() == pytest.approx([0.8 * 5 / 6 + 0.2 * 5 / 4, 0.4 * 5 / 6 + 0.6 * 5 / 4])
    assert float(weights.mean()) == pytest.approx(1.0)


def test_a_group_without_pairs_in_the_batch_counts_as_average():
    probs = torch.cat([HARD, torch.zeros(4, 1)], dim=1)
    grown = next_weights([0.5, 0.3, 0.2], LOSS, probs, 2.0)
    factors = [0.5 * math.exp(2 * 0.3), 0.3 * math.exp(2 * 0.9), 0.2 * math.exp(2 * 0.45)]
    assert grown == pytest.approx([factor / sum(factors) for factor in factors])
    # Alone in the batch: nothing is known of the others, and nothing changes.
    assert next_weights([0.5, 0.3, 0.2], LOSS[:3], probs[:3], 2.0) == pytest.approx([0.5, 0.3, 0.2])


def test_pair_weights_are_the_gradient_of_the_weighted_group_losses():
    loss = LOSS.clone().requires_grad_()
    alpha, share = [0.4, 0.6], [0.75, 0.25]  # the batch has the shares of the data
    (gradient,) = torch.autograd.grad(0.4 * loss[:3].mean() + 0.6 * loss[3], loss)
    assert (pair_weights(alpha, share, HARD) / 4).tolist() == pytest.approx(gradient.tolist())


@pytest.mark.parametrize("share", [[0.1, 0.9], [1 / 3, 2 / 3]])
def test_weights_are_one_bit_for_bit_where_alpha_is_the_share(share):
    soft = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert pair_weights(share, share, soft).tolist() == [1.0] * 50
    assert pair_weights([1.0], [1.0], torch.ones(3, 1)).tolist() == [1.0] * 3
    later = share
    for _ in range(1000):
        later = next_weights(later, torch.tensor([0.3, 0.5]), soft[:2], 0.0)
    assert pair_weights(later, share, soft).tolist() == [1.0] * 50


def test_pairs_and_groups_that_belong_to_nothing():
    outside = torch.tensor([[0.0, 0.0], [0.0, 1.0]])  # a domain that training has not seen
    assert pair_weights([0.2, 0.8], [0.5, 0.5], outside).tolist() == pytest.approx([1.0, 1.6])
    assert pair_weights([0.0, 1.0], [0.0, 1.0], torch.tensor([[0.0, 1.0]])).tolist() == [1.0]  # a collapsed classifier


@pytest.mark.parametrize("value", [1e4, 1e30])
def test_one_pair_does_not_decide_the_weights_for_good(value):
    loss = torch.tensor([0.7, 0.6, value, 0.8, 0.7, 0.5])
    probs = torch.eye(2)[[0, 0, 0, 1, 1, 1]]
    found = next_weights([0.5, 0.5], loss, probs, 0.5)
    assert found == next_weights([0.5, 0.5], torch.tensor([0.7, 0.6, 0.8, 0.8, 0.7, 0.5]), probs, 0.5)
    assert 0.4 < found[0] < 0.6
