"""PPO losses: hand-computed numbers, exact micro-batch splits, and what must reduce bit for bit to plain PPO."""

import pytest
import torch

from gipo_mc.algorithms.group_invariance import bounded_beta, group_statistics, moments, signal_gradient
from gipo_mc.algorithms.ppo import explained_variance, policy_loss_terms, value_loss_sum
from gipo_mc.ops import group_objective

CLIP = 0.2


def batch(rows=8, time=5, groups=2, seed=0, dtype=torch.float64):
    """logp, behaviour, reference, advantage [B, T], length [B], p [B, M], signal [B]."""
    g = torch.Generator().manual_seed(seed)
    behaviour = -torch.rand(rows, time, generator=g, dtype=torch.float64) - 0.5
    logp = behaviour + 0.3 * torch.randn(rows, time, generator=g, dtype=torch.float64)
    reference = behaviour + 0.1 * torch.randn(rows, time, generator=g, dtype=torch.float64)
    advantage = torch.randn(rows, time, generator=g, dtype=torch.float64)
    length = torch.randint(1, time + 1, (rows,), generator=g)
    probs = torch.randn(rows, groups, generator=g, dtype=torch.float64).softmax(1)
    signal = torch.randn(rows, generator=g, dtype=torch.float64)
    floats = [x.to(dtype) for x in (logp, behaviour, reference, advantage)]
    return [*floats, length, probs.to(dtype), signal.to(dtype)]


def objective(data, rows=slice(None), form="ratio", logp=None):
    values = [x[rows] for x in data]
    if logp is not None:
        values[0] = logp[rows]
    return group_objective(*values, values[5][:, 0].contiguous(), clip=CLIP, kl_estimator="k3", signal_form=form)


def plain_loss(data, logp, beta, weights, form="ratio"):
    """The mini-batch loss written out from the formulas, for autograd."""
    _, behaviour, _, advantage, length, probs, signal = data
    mask = torch.arange(logp.shape[1]) < length[:, None]
    ratio = (logp - behaviour).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    if form == "ratio":
        s = signal + ((ratio - 1) * advantage * mask).sum(1) / length
    else:
        s = (logp * advantage * mask).sum(1)
    mass = probs.sum(0)
    r = (probs * s[:, None]).sum(0) / mass
    omega = mass / len(s) if weights == "size" else torch.full_like(mass, 1 / len(mass))
    variance = (omega * (r - (omega * r).sum()) ** 2).sum()
    return -(surrogate * mask).sum() / mask.sum() + beta * variance


@pytest.mark.parametrize(("weights", "form"), [("size", "ratio"), ("population", "log_prob")])
@pytest.mark.parametrize("size", [8, 3, 1])
def test_micro_batches_add_up_to_the_gradient_of_the_mini_batch(weights, form, size):
    data = batch()
    tokens, beta = int(data[4].sum()), 0.4
    whole_logp = data[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(plain_loss(data, whole_logp, beta, weights, form), whole_logp)

    parts = [slice(i, i + size) for i in range(0, 8, size)]
    first_pass = [objective(data, part, form) for part in parts]
    m = moments(sum(o.mass_M for o in first_pass), sum(o.weighted_M for o in first_pass), 8, weights)
    logp = data[0].clone().requires_grad_()
    for part in parts:
        loss = policy_loss_terms(
            objective(data, part, form, logp),
            tokens=tokens,
            signal_gradient_B=signal_gradient(m, data[5][part]),
            beta=beta,
        )
        loss.backward()
    torch.testing.assert_close(logp.grad, expected, rtol=1e-9, atol=1e-12)


def test_policy_loss_by_hand():
    # Ratios 1.5 (clipped at 1.2, A = 2), 1 (A = -1); then 0.5 (A = -3, clipped at 0.8).
    ratio = torch.tensor([[1.5, 1.0], [0.5, 9.0]], dtype=torch.float64)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    advantage = torch.tensor([[2.0, -1.0], [-3.0, 9.0]], dtype=torch.float64)
    data = [ratio.log(), zero, zero, advantage, torch.tensor([2, 1]), torch.eye(2).double(), torch.zeros(2).double()]
    o = objective(data)
    assert o.surrogate_B.tolist() == pytest.approx([2.4 - 1.0, -2.4])
    loss = policy_loss_terms(o, tokens=3)
    assert float(loss) == pytest.approx(1.0 / 3)
    assert o.signal_B.tolist() == pytest.approx([0.5 * 2 / 2, -0.5 * -3])
    penalty = policy_loss_terms(o, tokens=3, signal_gradient_B=torch.tensor([1.0, -2.0]).double(), beta=0.1)
    assert float(penalty) == pytest.approx(1 / 3 + 0.1 * (0.5 - 3.0))
    bonus = policy_loss_terms(o, tokens=3, entropy_sum=torch.tensor(6.0).double(), entropy_coef=0.01)
    assert float(bonus) == pytest.approx(1 / 3 - 0.02)
    kl = policy_loss_terms(o, tokens=3, kl_weight_B=torch.tensor([0.1, 0.2]).double())
    assert float(kl) == pytest.approx(1 / 3 + (0.1 * float(o.kl_B[0]) + 0.2 * float(o.kl_B[1])) / 3)


def gradients(data, **options):
    logp = data[0].clone().requires_grad_()
    loss = policy_loss_terms(objective(data, logp=logp), tokens=int(data[4].sum()), **options)
    loss.backward()
    return loss.detach(), logp.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", ["size", "population"])
def test_one_group_and_no_beta_are_ppo_bit_for_bit(dtype, weights):
    plain = gradients(batch(dtype=dtype))
    one = batch(groups=1, dtype=dtype)
    one[5] = torch.ones(8, 1, dtype=dtype)
    one[6] = batch(dtype=dtype)[6]  # drawn after p, so it depends on M: only p is to differ
    m = moments(*group_statistics(one[5], one[6]), 8, weights)
    beta, kept = bounded_beta(0.3, m, mass_floor=0.05, cap=0.8)
    results = [gradients(one, signal_gradient_B=signal_gradient(kept, one[5]), beta=beta)]
    two = batch(dtype=dtype)
    m = moments(*group_statistics(two[5], two[6]), 8, weights)
    results.append(gradients(two, signal_gradient_B=signal_gradient(m, two[5]), beta=0.0))
    beta, kept = bounded_beta(0.0, m, mass_floor=0.05, cap=0.8)
    results.append(gradients(two, signal_gradient_B=signal_gradient(kept, two[5]), beta=beta))
    for loss, gradient in results:
        assert torch.equal(loss, plain[0])
        assert torch.equal(gradient, plain[1])


def test_surrogate_has_the_rewards_value_and_ppos_gradient_at_ratio_one():
    data = batch()
    data[0] = data[1].clone()
    logp = data[0].clone().requires_grad_()
    o = objective(data, logp=logp)
    torch.testing.assert_close(o.signal_B, data[6])
    (of_signal,) = torch.autograd.grad((o.signal_B * data[4]).sum(), logp, retain_graph=True)
    (of_ppo,) = torch.autograd.grad(o.surrogate_B.sum(), logp)
    torch.testing.assert_close(of_signal, of_ppo)


def test_policy_loss_ignores_the_padding():
    data = batch(dtype=torch.float32)
    outside = torch.arange(5) >= data[4][:, None]
    dirty = [x.masked_fill(outside, torch.nan) if x.shape == outside.shape else x for x in data]
    weight = {"signal_gradient_B": data[6], "beta": 0.3}
    for clean, spoiled in zip(gradients(data, **weight), gradients(dirty, **weight), strict=True):
        assert torch.equal(clean, spoiled)


def values(dtype=torch.float64):
    return [
        torch.tensor(x, dtype=dtype, requires_grad=i == 0)
        for i, x in enumerate(([[1.0, 2.0, 9.0], [0.0, 9.0, 9.0]], [[0.5, 1.9, 9.0], [1.0, 9.0, 9.0]], [[2.0] * 3] * 2))
    ] + [torch.tensor([2, 1])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_loss_by_hand(dtype):
    new, old, target, length = values(dtype)
    assert float(value_loss_sum(new, old, target, length, 0.0).detach()) == pytest.approx(0.5 * (1 + 0 + 4))
    # V_clip = 0.7, 2.0, 0.8: errors max(1, 1.69), 0, max(4, 1.44)
    loss = value_loss_sum(new, old, target, length, 0.2)
    assert float(loss.detach()) == pytest.approx(0.5 * (1.69 + 4), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, new)
    assert gradient.tolist() == [[0.0, 0.0, 0.0], [-2.0, 0.0, 0.0]]


def test_value_loss_splits_and_ignores_the_padding():
    new, old, target, length = values()
    whole = value_loss_sum(new, old, target, length, 0.2)
    parts = sum(
        value_loss_sum(new[i : i + 1], old[i : i + 1], target[i : i + 1], length[i : i + 1], 0.2) for i in (0, 1)
    )
    torch.testing.assert_close(whole, parts)
    outside = torch.arange(3) >= length[:, None]
    dirty = new.detach().masked_fill(outside, torch.nan).requires_grad_()
    loss = value_loss_sum(dirty, old.masked_fill(outside, torch.inf), target, length, 0.2)
    assert torch.equal(loss, whole)
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert torch.equal(gradient, torch.autograd.grad(whole, new)[0])


def test_explained_variance():
    target = torch.tensor([[1.0, 2.0], [3.0, torch.nan]])
    length = torch.tensor([2, 1])
    assert explained_variance(target, target, length) == 1.0
    assert explained_variance(target + 5, target, length) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(2, 2), target, length) == pytest.approx(0.0)
    assert explained_variance(-target, target, length) == pytest.approx(-3.0)
    assert explained_variance(target, torch.ones(2, 2), length) == 0.0
    assert explained_variance(target, target, torch.tensor([0, 0])) == 0.0
