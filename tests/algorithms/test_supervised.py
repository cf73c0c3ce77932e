"""Reward model, SFT and DPO losses against numbers worked out by hand and against torch."""

import math

import pytest
import torch
from torch.nn import functional as F

from gipo_mc.algorithms.dpo import dpo_loss
from gipo_mc.algorithms.supervised import cross_entropy_sum, preference_correct, preference_loss_sum

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@dtypes
def test_bradley_terry(dtype):
    chosen = torch.tensor([1.0, 0.0, 2.0], dtype=dtype)
    rejected = torch.tensor([0.0, 0.0, 5.0], dtype=dtype)
    expected = math.log1p(math.exp(-1)) + math.log(2) + math.log1p(math.exp(3))
    loss = preference_loss_sum(chosen, rejected)
    assert loss.dtype == dtype
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(preference_correct(chosen, rejected)) == 1.5  # right, tie, wrong
    # A margin of m asks for m more: the loss of (chosen - m).
    torch.testing.assert_close(preference_loss_sum(chosen, rejected, 0.5), preference_loss_sum(chosen - 0.5, rejected))
    per_pair = torch.tensor([0.1, 0.2, 0.3], dtype=dtype)
    torch.testing.assert_close(
        preference_loss_sum(chosen, rejected, per_pair), preference_loss_sum(chosen - per_pair, rejected)
    )


def test_bradley_terry_gradient_and_extremes():
    chosen = torch.tensor([0.3, -1000.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, 1000.0], dtype=torch.float64)
    loss = preference_loss_sum(chosen, rejected)
    loss.backward()
    assert torch.isfinite(loss)
    assert chosen.grad.tolist() == pytest.approx([-1 / (1 + math.exp(0.3)), -1.0])  # -sigmoid(-difference)


@dtypes
def test_cross_entropy_is_torchs(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, generator=generator).to(dtype)
    targets = torch.tensor([0, -100, 4, 2, -100, 1, 3])
    logp = logits.log_softmax(1).gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    logp[1] = torch.nan  # ignored positions never matter
    total, count = cross_entropy_sum(logp, targets)
    assert int(count) == 5
    torch.testing.assert_close(total, F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"))
    parts = [cross_entropy_sum(logp[i:j], targets[i:j]) for i, j in ((0, 1), (1, 5), (5, 7))]
    torch.testing.assert_close(sum(part[0] for part in parts), total)
    nothing, none = cross_entropy_sum(logp[1:2], targets[1:2])
    assert float(nothing) == 0.0 and int(none) == 0


def pairs(dtype=torch.float64):
    return [torch.tensor(x, dtype=dtype) for x in ([-5.0, -8.0], [-7.0, -6.0], [-6.0, -8.0], [-6.0, -8.0])]


@dtypes
def test_dpo_by_hand(dtype):
    # h = (-5 + 6) - (-7 + 6) = 2 and (-8 + 8) - (-6 + 8) = -2
    loss, margin = dpo_loss(*pairs(dtype), beta=0.5)
    assert margin.tolist() == [1.0, -1.0]
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(1))], rel=1e-6)
    smooth, _ = dpo_loss(*pairs(dtype), beta=0.5, label_smoothing=0.1)
    assert float(smooth[0]) == pytest.approx(0.9 * float(loss[0]) + 0.1 * float(loss[1]), rel=1e-6)
    ipo, _ = dpo_loss(*pairs(dtype), beta=0.5, variant="ipo")
    assert ipo.tolist() == pytest.approx([1.0, 9.0])  # (2 - 1)^2, (-2 - 1)^2


def test_dpo_starts_at_ln_two_and_moves_apart():
    chosen = torch.tensor([-5.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    loss, margin = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.1)
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-12) and float(margin) == 0.0
    loss.sum().backward()
    assert float(chosen.grad) == pytest.approx(-0.05) and float(rejected.grad) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": 0.0}, "must be positive"),
        ({"beta": 0.1, "label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"beta": 0.1, "variant": "ipo", "label_smoothing": 0.1}, "not of ipo"),
    ],
)
def test_dpo_refuses_what_has_no_meaning(options, said):
    with pytest.raises(ValueError, match=said):
        dpo_loss(*pairs(), **options)
