"""The group variance: hand-computed numbers, its closed-form gradients, exact splits and degenerate groups."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.algorithms.group_invariance import (
    bounded_beta,
    group_statistics,
    moments,
    probability_gradient,
    relative_weight,
    signal_gradient,
    with_mass_floor,
)
from tests.algorithms.group_invariance.cases import HARD, SIGNAL, draw, dtypes, modes, whole


def plain_variance(probs, signal, weights):
    """R_var written out once more, differentiable, as the formula of the paper reads."""
    mass = probs.sum(0)
    objective = (probs * signal[:, None]).sum(0) / mass
    omega = mass / len(signal) if weights == "size" else torch.full_like(mass, 1 / len(mass))
    return (omega * (objective - (omega * objective).sum()) ** 2).sum()


@dtypes
def test_hand_computed_by_size(dtype):
    m = whole(HARD.to(dtype), SIGNAL.to(dtype), "size")
    assert m.objective_M.tolist() == [2.0, 6.0]
    assert float(m.mean) == 3.0  # (3 * 2 + 1 * 6) / 4
    assert float(m.variance) == 3.0  # 3/4 * 1 + 1/4 * 9 = w (1 - w) D^2
    assert m.omega_M.tolist() == [0.75, 0.25]
    gradient = signal_gradient(m, HARD.to(dtype))
    assert gradient.dtype == dtype
    assert gradient.tolist() == [-0.5, -0.5, -0.5, 1.5]  # (2/4) (R_g - 3)
    assert relative_weight(0.1, m, HARD.to(dtype)).tolist() == pytest.approx([1.2, 1.2, 1.2, 0.4])
    # (2 S R_g - R_g^2 - 2 Rbar S + Rbar^2) / 4 for S = 0 and S = 6
    assert probability_gradient(m, SIGNAL.to(dtype))[[0, 3]].tolist() == [[1.25, -6.75], [-1.75, 2.25]]


@dtypes
def test_hand_computed_population(dtype):
    m = whole(HARD.to(dtype), SIGNAL.to(dtype), "population")
    assert float(m.mean) == 4.0
    assert float(m.variance) == 4.0  # D^2 / 4
    assert signal_gradient(m, HARD.to(dtype)).tolist() == pytest.approx([-2 / 3, -2 / 3, -2 / 3, 2.0])
    # (R_g - 4)(S - R_g) / P_g for S = 0: (-2)(-2)/3 and (2)(-6)/1
    assert probability_gradient(m, SIGNAL.to(dtype))[0].tolist() == pytest.approx([4 / 3, -12.0])


@modes
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 17), groups=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_closed_forms_are_autograd(weights, rows, groups, seed):
    probs, signal = draw(rows, groups, seed)
    logits = probs.log().requires_grad_()
    signal.requires_grad_()
    value = plain_variance(logits.softmax(1), signal, weights)
    by_signal, by_logit = torch.autograd.grad(value, (signal, logits))

    m = whole(probs, signal.detach(), weights)
    torch.testing.assert_close(m.variance, value.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(signal_gradient(m, probs), by_signal, rtol=1e-9, atol=1e-12)
    through_softmax = torch.autograd.grad(logits.softmax(1), logits, probability_gradient(m, signal))[0]
    torch.testing.assert_close(through_softmax, by_logit, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("groups", [2, 4])
def test_population_probability_gradient_is_autograd_before_the_softmax(groups):
    probs, signal = draw(13, groups, 3)
    probs.requires_grad_()
    (expected,) = torch.autograd.grad(plain_variance(probs, signal, "population"), probs)
    torch.testing.assert_close(probability_gradient(whole(probs, signal, "population"), signal), expected)


def test_size_probability_gradient_is_autograd_before_the_softmax():
    probs, signal = draw(13, 3, 3)
    probs.requires_grad_()
    (expected,) = torch.autograd.grad(plain_variance(probs, signal, "size"), probs)
    torch.testing.assert_close(probability_gradient(whole(probs, signal, "size"), signal), expected)


@modes
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 20), groups=st.integers(1, 6), seed=st.integers(0, 10_000), beta=st.floats(0, 3))
def test_weights_are_zero_sum(weights, rows, groups, seed, beta):
    probs, signal = draw(rows, groups, seed)
    m = whole(probs, signal, weights)
    # grad(mean S - beta R_var) = sum_i c_i grad S_i with sum_i c_i = 1
    c = relative_weight(beta, m, probs) / rows
    assert float(c.sum()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_combined_objective_is_a_reweighting(beta):
    probs, signal = draw(9, 2, 5)
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theta = torch.ones(4, dtype=torch.float64, requires_grad=True)
    s = torch.tanh(features @ theta) + signal
    (expected,) = torch.autograd.grad(s.mean() - beta * plain_variance(probs, s, "size"), theta, retain_graph=True)
    m = whole(probs, s.detach(), "size")
    (actual,) = torch.autograd.grad((relative_weight(beta, m, probs) / 9 * s).sum(), theta)
    torch.testing.assert_close(actual, expected)


@modes
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 16), max_size=5), seed=st.integers(0, 1000))
def test_any_split_gives_the_gradient_of_the_whole(weights, cuts, seed):
    probs, signal = draw(16, 3, seed)
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(plain_variance(probs, torch.sin(theta * signal), weights), theta)

    edges = [0, *sorted(cuts), 16]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    with torch.no_grad():  # first pass: sums over all micro-batches
        sums = [group_statistics(probs[part], torch.sin(theta * signal[part])) for part in parts]
        m = moments(sum(mass for mass, _ in sums), sum(weighted for _, weighted in sums), 16, weights)
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:  # second pass: coefficients fixed
        loss = (signal_gradient(m, probs[part]) * torch.sin(theta * signal[part])).sum()
        total = total + torch.autograd.grad(loss, theta)[0]
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


@modes
def test_a_mean_of_micro_batch_variances_is_another_objective(weights):
    probs, signal = draw(16, 2, 2)
    signal.requires_grad_()
    parts = [slice(i, i + 4) for i in range(0, 16, 4)]
    (exact,) = torch.autograd.grad(plain_variance(probs, signal, weights), signal)
    naive_value = sum(plain_variance(probs[p], signal[p], weights) for p in parts) / 4
    (naive,) = torch.autograd.grad(naive_value, signal)
    assert float((naive - exact).norm()) > 0.5 * float(exact.norm())


@modes
def test_a_group_that_a_part_does_not_have(weights):
    """Every part lacks one of the groups, as on a data-parallel rank that drew none of it; the sums are exact."""
    parts = [group_statistics(HARD[i : i + 1], SIGNAL[i : i + 1]) for i in range(4)]
    m = moments(sum(mass for mass, _ in parts), sum(weighted for _, weighted in parts), 4, weights)
    expected = whole(HARD, SIGNAL, weights)
    assert torch.equal(m.variance, expected.variance) and torch.equal(m.objective_M, expected.objective_M)
    by_part = torch.cat([signal_gradient(m, HARD[i : i + 1]) for i in range(4)])
    assert torch.equal(by_part, signal_gradient(expected, HARD))


@modes
@dtypes
def test_one_group_has_no_variance_at_all(weights, dtype):
    _, signal = draw(7, 1, 0, dtype)
    probs = torch.randn(7, 1, dtype=dtype, generator=torch.Generator().manual_seed(0)).softmax(1)
    m = whole(probs, signal, weights)
    assert float(m.variance) == 0.0
    assert torch.equal(signal_gradient(m, probs), torch.zeros(7, dtype=dtype))
    assert torch.equal(relative_weight(0.7, m, probs), torch.ones(7, dtype=dtype))


@modes
@pytest.mark.parametrize("groups", [2, 3, 4])
def test_uniform_assignment_has_no_variance(weights, groups):
    _, signal = draw(11, 2, 4)
    probs = torch.full((11, groups), 1 / groups, dtype=torch.float64)
    m = whole(probs, signal, weights)
    assert float(m.variance) == pytest.approx(0.0, abs=1e-28)
    assert signal_gradient(m, probs).abs().max() < 1e-14


@modes
@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_labels_permute_freely(weights, order, seed):
    probs, signal = draw(10, 4, seed)
    a, b = whole(probs, signal, weights), whole(probs[:, order], signal, weights)
    torch.testing.assert_close(a.variance, b.variance)
    torch.testing.assert_close(a.objective_M[order], b.objective_M)
    torch.testing.assert_close(signal_gradient(a, probs), signal_gradient(b, probs[:, order]))
    torch.testing.assert_close(probability_gradient(a, signal)[:, order], probability_gradient(b, signal))


@modes
@settings(max_examples=25, deadline=None)
@given(scale=st.floats(-5, 5), shift=st.floats(-100, 100), seed=st.integers(0, 1000))
def test_scale_squares_and_shift_leaves_the_variance(weights, scale, shift, seed):
    probs, signal = draw(10, 3, seed)
    base = float(whole(probs, signal, weights).variance)
    assert float(whole(probs, scale * signal, weights).variance) == pytest.approx(scale**2 * base, rel=1e-9, abs=1e-13)
    assert float(whole(probs, signal + shift, weights).variance) == pytest.approx(base, rel=1e-7, abs=1e-11)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 30))
def test_two_groups_by_their_distance(seed, rows):
    probs, signal = draw(rows, 2, seed)
    population, size = whole(probs, signal, "population"), whole(probs, signal, "size")
    distance = float(population.objective_M[0] - population.objective_M[1])
    share = float(size.mass_M[0]) / rows
    assert float(population.variance) == pytest.approx(distance**2 / 4)
    assert float(size.variance) == pytest.approx(share * (1 - share) * distance**2)
    assert float(size.variance) <= float(signal.var(correction=0)) + 1e-12  # ANOVA's bound


@modes
@dtypes
@pytest.mark.parametrize(
    "probs",
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]],  # the last group empty
        [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]],  # all in one
        [[1.0, 1e-40, 0.0], [1.0, 1e-42, 0.0], [1.0, 0.0, 0.0]],  # a mass whose inverse is not finite in fp32
    ],
    ids=["empty", "all-in-one", "denormal"],
)
def test_degenerate_groups_are_finite(weights, dtype, probs):
    probs = torch.tensor(probs, dtype=dtype)
    signal = torch.tensor([1.0, -2.0, 4.0], dtype=dtype)
    m = whole(probs, signal, weights)
    kept = with_mass_floor(m, 0.05)
    beta, _ = bounded_beta(0.3, m, mass_floor=0.05, cap=0.8)
    for tensor in (
        m.objective_M,
        m.mean,
        m.variance,
        signal_gradient(m, probs),
        probability_gradient(m, signal),
        signal_gradient(kept, probs),
        beta,
    ):
        assert torch.isfinite(tensor).all()
    assert float(m.omega_M.sum()) == pytest.approx(1.0)
    assert float(m.objective_M[2]) == 0.0
    assert float(m.omega_M[2]) == 0.0


@dtypes
def test_a_mass_of_rounding_noise_is_no_group(dtype):
    probs = torch.tensor([[1.0, 1e-40], [1.0, 1e-42]], dtype=dtype)
    m = whole(probs, torch.tensor([1.0, 5.0], dtype=dtype), "population")
    assert m.omega_M.tolist() == [1.0, 0.0] and float(m.variance) == 0.0


@modes
def test_an_empty_group_leaves_the_others_as_if_it_were_not_there(weights):
    probs, signal = draw(8, 2, 1)
    with_empty = torch.cat([probs, torch.zeros(8, 1, dtype=torch.float64)], 1)
    a, b = whole(probs, signal, weights), whole(with_empty, signal, weights)
    torch.testing.assert_close(a.variance, b.variance)
    torch.testing.assert_close(signal_gradient(a, probs), signal_gradient(b, with_empty))
    torch.testing.assert_close(probability_gradient(a, signal), probability_gradient(b, signal)[:, :2])
    assert probability_gradient(b, signal)[:, 2].tolist() == [0.0] * 8


@modes
def test_a_group_of_one_member(weights):
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    m = whole(probs, torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64), weights)
    assert m.objective_M.tolist() == [2.0, 8.0]
    assert float(m.variance) == pytest.approx(8.0 if weights == "size" else 9.0)


@modes
def test_equal_signals_and_no_rows(weights):
    probs, _ = draw(6, 2, 1)
    m = whole(probs, torch.full((6,), 3.0, dtype=torch.float64), weights)
    assert float(m.variance) == pytest.approx(0.0, abs=1e-28)
    nothing = whole(torch.zeros(0, 2), torch.zeros(0), weights)
    assert float(nothing.variance) == 0.0
    assert signal_gradient(nothing, torch.zeros(0, 2)).shape == (0,)


@modes
def test_more_groups_than_rows(weights):
    probs, signal = draw(2, 16, 1)
    m = whole(probs, signal, weights)
    assert torch.isfinite(signal_gradient(m, probs)).all()
    assert float(signal_gradient(m, probs).sum()) == pytest.approx(0.0, abs=1e-12)


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="neither 'size' nor 'population'"):
        moments(torch.ones(2), torch.ones(2), 2, "uniform")
