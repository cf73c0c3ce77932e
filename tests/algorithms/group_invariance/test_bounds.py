"""The variance penalty on the policy: mass floor, cap on a sequence's weight, ramp of beta, and what length does."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.algorithms.group_invariance import (
    Over,
    beta_at,
    bounded_beta,
    group_statistics,
    length_factor,
    length_share,
    relative_weight,
    signal_gradient,
    with_mass_floor,
)
from gipo_mc.ops import SignalForm, group_variance
from tests.algorithms.group_invariance.cases import HARD, SIGNAL, draw, modes, whole


@modes
def test_mass_floor_takes_a_thin_group_out_and_keeps_the_zero_sum(weights):
    probs = torch.zeros(40, 3, dtype=torch.float64)
    probs[:20, 0], probs[20:39, 1], probs[39, 2] = 1, 1, 1  # 50 %, 47.5 %, 2.5 %
    signal = torch.cat([torch.zeros(20), torch.ones(19), torch.full((1,), 100.0)]).double()
    m = whole(probs, signal, weights)
    kept = with_mass_floor(m, 0.05)
    assert kept.omega_M[2] == 0.0
    assert float(kept.variance) == pytest.approx((20 / 39) * (19 / 39) if weights == "size" else 0.25)
    gradient = signal_gradient(kept, probs)
    assert float(gradient[39]) == 0.0
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-14)
    same = with_mass_floor(m, 0.01)  # nobody left out: bit for bit the same moments
    assert torch.equal(same.variance, m.variance) and torch.equal(same.omega_M, m.omega_M)


def test_mass_floor_that_leaves_one_group_stops_the_penalty():
    probs = torch.tensor([[0.99, 0.01]] * 8, dtype=torch.float64)
    probs[0] = torch.tensor([0.9, 0.1])
    _, signal = draw(8, 2, 0)
    _, kept = bounded_beta(0.3, whole(probs, signal, "size"), mass_floor=0.05, cap=0.8)
    assert torch.equal(relative_weight(0.3, kept, probs), torch.ones(8, dtype=torch.float64))


def test_mass_floor_above_every_group_is_finite():
    probs, signal = draw(8, 4, 0)
    kept = with_mass_floor(whole(probs, signal, "population"), 0.49)
    assert float(kept.variance) == 0.0
    assert torch.equal(signal_gradient(kept, probs), torch.zeros(8, dtype=torch.float64))


def test_cap_by_hand():
    m = whole(HARD, SIGNAL, "size")  # |R_g - Rbar| = 1, 3
    beta, _ = bounded_beta(0.3, m, mass_floor=0.0, cap=0.8)
    assert float(beta) == pytest.approx(0.8 / 6)
    assert relative_weight(beta, m, HARD).tolist() == pytest.approx([1 + 0.8 / 3] * 3 + [0.2])
    assert float(bounded_beta(0.1, m, mass_floor=0.0, cap=0.8)[0]) == pytest.approx(0.1)
    assert float(bounded_beta(0.3, m, mass_floor=0.0, cap=math.inf)[0]) == pytest.approx(0.3)


def test_cap_counts_the_size_of_the_group_where_the_weights_do_not():
    m = whole(HARD, SIGNAL, "population")  # N omega_g / P_g = 2/3, 2 and |R_g - Rbar| = 2, 2
    beta, _ = bounded_beta(1.0, m, mass_floor=0.0, cap=0.8)
    assert float(beta) == pytest.approx(0.1)
    assert relative_weight(beta, m, HARD).tolist() == pytest.approx([1 + 0.8 / 3] * 3 + [0.2])


@modes
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 1000), beta=st.floats(0, 10), floor=st.floats(0, 0.45))
def test_capped_weights_never_unlearn(weights, seed, scale, beta, floor):
    probs, signal = draw(12, 3, seed)
    bounded, kept = bounded_beta(beta, whole(probs, scale * signal, weights), mass_floor=floor, cap=0.8)
    assert 0.0 <= float(bounded) <= beta
    weight = relative_weight(bounded, kept, probs)
    assert float(weight.min()) >= 0.2 - 1e-9
    if weights == "size" and floor == 0.0:
        assert float(weight.max()) <= 1.8 + 1e-9


def test_bad_bounds_are_refused():
    m = whole(HARD, SIGNAL, "size")
    for beta, cap in ((-0.1, 0.8), (0.1, 0.0), (math.nan, 0.8)):
        with pytest.raises(ValueError, match="must not be negative"):
            bounded_beta(beta, m, mass_floor=0.0, cap=cap)


def test_ramp():
    assert [beta_at(step, 0.3, 3) for step in (0, 1, 2, 3, 50)] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.3])
    assert beta_at(0, 0.3, 0) == 0.3


@pytest.mark.parametrize("form", ["ratio", "log_prob", "log_prob_mean"])
@pytest.mark.parametrize("over", ["tokens", "responses"])
def test_the_weights_are_what_multiplies_ppos_gradient_at_every_length(form: SignalForm, over: Over) -> None:
    """L = -(1/n) sum_it ratio A + beta R_var, differentiated by the log-probs of a response's own tokens."""
    torch.manual_seed(4)
    length = torch.tensor([1, 9, 3, 5])
    mask = torch.arange(9) < length[:, None]
    behaviour, advantage = -torch.rand(4, 9).double(), torch.randn(4, 9).double()
    probs, value = torch.rand(4, 3).double().softmax(1), torch.randn(4).double()
    logp = behaviour.clone().requires_grad_()
    tokens = int(length.sum())
    ratio = torch.where(mask, (logp - behaviour).exp(), 0.0)
    if form == "ratio":
        divisor = tokens / len(length) if over == "tokens" else length
        signal = value + (torch.where(mask, ratio - 1, 0.0) * advantage).sum(1) / divisor
    else:
        signal = torch.where(mask, logp * advantage, 0.0).sum(1) / (1 if form == "log_prob" else length)
    beta, m = 0.7, whole(probs, signal.detach(), "size")
    variance = group_variance(*group_statistics(probs, signal), len(length), weights="size").variance
    (beta * variance - (ratio * advantage).sum() / tokens).backward()
    weight = relative_weight(beta, m, probs, length_factor(length, form, over))
    expected = -weight[:, None] * torch.where(mask, advantage, 0.0) / tokens
    torch.testing.assert_close(logp.grad, expected, rtol=1e-12, atol=1e-14)
    share = length_share(length, form, over)
    assert (share is None) == (over == "responses" or form != "ratio")
    assert share is None or share.tolist() == pytest.approx([1 / 4.5, 9 / 4.5, 3 / 4.5, 5 / 4.5])


def test_a_cap_holds_for_every_length_over_tokens_and_not_over_responses() -> None:
    length, signal = torch.tensor([1, 20, 20, 20]), torch.tensor([3.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    beta, m = bounded_beta(1.0, whole(probs, signal, "size"), mass_floor=0.0, cap=0.8)
    lowest = {
        over: float(relative_weight(beta, m, probs, length_factor(length, "ratio", over)).min())
        for over in get_args(Over)
    }
    assert lowest["tokens"] == pytest.approx(0.2)
    assert lowest["responses"] == pytest.approx(1 - 0.8 * 15.25)
