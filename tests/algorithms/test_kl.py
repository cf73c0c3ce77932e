"""The weight of each sequence's KL."""

import pytest
import torch

from gipo_mc.algorithms.kl import controlled, kl_weights

PROBS = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])
KINDS = ("adaptive", "adaptive_mean", "fixed", "none")


def test_adaptive_weights_follow_the_best_group():
    torch.testing.assert_close(kl_weights(0.1, PROBS, 0, "adaptive"), torch.tensor([0.025, 0.05, 0.1]))
    torch.testing.assert_close(kl_weights(0.1, PROBS, 1, "adaptive"), torch.tensor([0.075, 0.05, 0.0]))


def test_the_mean_control_has_as_much_and_knows_no_sequence():
    even = kl_weights(0.1, PROBS, 0, "adaptive_mean")
    torch.testing.assert_close(even, torch.full((3,), 0.1 * 1.75 / 3))
    torch.testing.assert_close(even.sum(), kl_weights(0.1, PROBS, 0, "adaptive").sum())


def test_fixed_and_not_yet_known():
    for best, kind in ((0, "fixed"), (None, "adaptive"), (None, "adaptive_mean"), (None, "fixed")):
        assert torch.equal(kl_weights(0.1, PROBS, best, kind), torch.full((3,), 0.1))
    for best in (0, None):
        assert torch.equal(kl_weights(0.1, PROBS, best, "none"), torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["adaptive", "adaptive_mean"])
def test_one_group_is_the_fixed_weight_bit_for_bit(dtype, kind):
    for probs in (torch.ones(5, 1, dtype=dtype), torch.zeros(5, 1, dtype=dtype).softmax(1)):
        assert torch.equal(kl_weights(0.0437, probs, 0, kind), kl_weights(0.0437, probs, 0, "fixed"))


def test_detached_and_checked():
    probs = PROBS.clone().requires_grad_()
    for kind in KINDS:
        assert not kl_weights(0.1, probs, 1, kind).requires_grad
    with pytest.raises(ValueError, match="best_group=2"):
        kl_weights(0.1, PROBS, 2, "adaptive")


def test_the_coefficient_follows_its_target():
    assert controlled(0.5, 6.0, 6.0) == 0.5
    assert controlled(0.5, 6.6, 6.0) == pytest.approx(0.5 * 1.01)
    assert controlled(0.5, 60.0, 6.0) == pytest.approx(0.5 * 1.02)  # by 2 % at most
    assert controlled(0.5, -1.0, 6.0) == pytest.approx(0.5 * 0.98)
