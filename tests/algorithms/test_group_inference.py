"""Group inference: the best group, and the classifier's loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.algorithms.group_diagnostics import diagnostics
from gipo_mc.algorithms.group_inference import (
    GroupState,
    classifier_loss_terms,
    update_best_group,
)
from gipo_mc.algorithms.group_invariance import group_statistics, moments

PROBS = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])


def test_best_group_by_hand():
    state = update_best_group(GroupState.initial(2), PROBS, torch.tensor([3.0, 0.0, 0.0]), 0.9)
    assert state.mean_M == (2.0, 0.0) and state.best_group == 0
    state = update_best_group(state, PROBS, torch.tensor([0.0, 0.0, 9.0]), 0.9)
    assert state.mean_M == pytest.approx((1.8, 0.6)) and state.best_group == 0 and state.flips == 0
    for _ in range(2):
        state = update_best_group(state, PROBS, torch.tensor([0.0, 0.0, 15.0]), 0.9)
    # 1.8 -> 1.62 -> 1.458, 0.6 -> 1.54 -> 2.386: the other one is best now
    assert state.mean_M == pytest.approx((1.458, 2.386))
    assert (state.best_group, state.flips, state.steps) == (1, 1, 4)


def test_negative_rewards_and_the_sign():
    state = update_best_group(GroupState.initial(2), PROBS, torch.tensor([-5.0, -5.0, -1.0]), 0.9)
    assert state.best_group == 1


def test_a_group_without_mass_is_neither_measured_nor_chosen():
    probs = torch.cat([PROBS, torch.zeros(3, 1)], 1)
    state = update_best_group(GroupState.initial(3), probs, torch.tensor([-3.0, -1.0, -2.0]), 0.9)
    assert state.mean_M[2] is None and state.best_group in (0, 1)
    thin = torch.tensor([[0.99, 0.01]] * 100)
    state = update_best_group(GroupState.initial(2), thin, torch.ones(100), 0.9)
    assert state.mean_M[1] is None and state.best_group == 0
    # It was best once, and loses the place when its sequences are gone.
    rich = GroupState(mean_M=(0.0, 99.0), best_group=1)
    after = update_best_group(rich, thin, torch.ones(100), 0.9)
    assert (after.best_group, after.flips, after.mean_M[1]) == (0, 1, 99.0)


def test_no_rows_and_a_floor_above_all_change_no_choice():
    state = GroupState(mean_M=(1.0, 2.0), best_group=1)
    assert update_best_group(state, torch.zeros(0, 2), torch.zeros(0), 0.9) == state
    assert update_best_group(state, PROBS, torch.zeros(3), 0.9, measured_share=0.9).best_group == 1


def test_a_tie_keeps_the_present_best():
    state = GroupState(mean_M=(1.0, 1.0), best_group=1)
    assert update_best_group(state, PROBS, torch.ones(3), 0.9).best_group == 1


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(3)), seed=st.integers(0, 100))
def test_best_group_follows_its_label(order, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = GroupState.initial(3), GroupState.initial(3)
    for _ in range(5):
        probs, reward = torch.randn(8, 3, generator=g).softmax(1), torch.randn(8, generator=g)
        a = update_best_group(a, probs, reward, 0.5)
        b = update_best_group(b, probs[:, order], reward, 0.5)
        assert order[b.best_group] == a.best_group
    assert a.flips == b.flips


def test_wrong_number_of_groups_is_refused():
    with pytest.raises(ValueError, match=r"2 groups, the group state 3"):
        update_best_group(GroupState.initial(3), PROBS, torch.ones(3), 0.9)


@pytest.mark.parametrize("weights", ["size", "population"])
@pytest.mark.parametrize("size", [12, 5, 1])
@pytest.mark.parametrize("balance", [0.0, 0.4])
def test_classifier_gradient_is_that_of_the_whole_mini_batch(weights, size, balance):
    g = torch.Generator().manual_seed(3)
    features = torch.randn(12, 4, generator=g, dtype=torch.float64)
    signal = torch.randn(12, generator=g, dtype=torch.float64)
    phi = torch.randn(4, 3, generator=g, dtype=torch.float64, requires_grad=True)

    probs = (features @ phi).softmax(1)
    mass = probs.sum(0)
    objective = (probs * signal[:, None]).sum(0) / mass
    omega = mass / 12 if weights == "size" else torch.full_like(mass, 1 / 3)
    variance = (omega * (objective - (omega * objective).sum()) ** 2).sum()
    uneven = (mass / 12 * (mass / 12 * 3).log()).sum()  # KL(mean p || uniform)
    (expected,) = torch.autograd.grad(-0.7 * variance + balance * uneven, phi)

    batch = moments(*group_statistics(probs.detach(), signal), 12, weights)
    total = torch.zeros_like(phi)
    for start in range(0, 12, size):
        part = slice(start, start + size)
        loss = classifier_loss_terms((features[part] @ phi).softmax(1), signal[part], batch, 0.7, balance)
        total += torch.autograd.grad(loss, phi)[0]
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


def test_classifier_learns_the_split_of_two_populations():
    """Stage 1 on its own: signals of two kinds, a linear head, gradient steps: it finds them and does not collapse."""
    g = torch.Generator().manual_seed(0)
    kind = (torch.arange(64) % 4 == 0).double()
    features = torch.stack([kind + 0.3 * torch.randn(64, generator=g, dtype=torch.float64), torch.ones(64).double()], 1)
    signal = kind + 0.5 * torch.randn(64, generator=g, dtype=torch.float64)
    phi = 0.01 * torch.randn(2, 2, generator=g, dtype=torch.float64)
    for _ in range(300):
        phi.requires_grad_()
        probs = (features @ phi).softmax(1)
        batch = moments(*group_statistics(probs.detach(), signal), 64, "size")
        (gradient,) = torch.autograd.grad(classifier_loss_terms(probs, signal, batch, 1.0), phi)
        phi = (phi - 5.0 * gradient).detach()
    domains = ["hard" if k else "easy" for k in kind]
    metrics = diagnostics(probs, signal, torch.zeros(64), torch.ones(64), domains, best_group=0)
    assert metrics["group/domain_auc"] > 0.9
    assert min(metrics["group/0/mass"], metrics["group/1/mass"]) > 0.15
