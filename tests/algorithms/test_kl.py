"""The weight of each sequence's KL."""

import pytest
import torch

from gipo_mc.algorithms.kl import kl_weights

PROBS = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])


def test_adaptive_weights_follow_the_best_group():
    torch.testing.assert_close(kl_weights(0.1, PROBS, 0, True), torch.tensor([0.025, 0.05, 0.1]))
    torch.testing.assert_close(kl_weights(0.1, PROBS, 1, True), torch.tensor([0.075, 0.05, 0.0]))


def test_fixed_and_not_yet_known():
    for best, adaptive in ((0, False), (None, True), (None, False)):
        assert torch.equal(kl_weights(0.1, PROBS, best, adaptive), torch.full((3,), 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_group_is_the_fixed_weight_bit_for_bit(dtype):
    probs = torch.randn(5, 1, dtype=dtype, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert torch.equal(kl_weights(0.0437, probs, 0, True), kl_weights(0.0437, probs, 0, False))


def test_detached_and_checked():
    probs = PROBS.clone().requires_grad_()
    for adaptive in (True, False):
        assert not kl_weights(0.1, probs, 1, adaptive).requires_grad
    with pytest.raises(ValueError, match="best_group=2"):
        kl_weights(0.1, PROBS, 2, True)
