"""Bounds of the variance penalty: the mass floor, the cap on a sequence's weight, the ramp of beta."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.algorithms.group_invariance import (
    beta_at,
    bounded_beta,
    relative_weight,
    signal_gradient,
    with_mass_floor,
)
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
