"""Group inference: the signal, the best group, the classifier's loss, the diagnostics and their warnings."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.algorithms.group_inference import (
    GroupState,
    classifier_loss_terms,
    diagnostics,
    normalised_signal,
    update_best_group,
    warnings,
)
from gipo_mc.algorithms.group_invariance import group_statistics, moments
from gipo_mc.errors import CheckpointError

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@dtypes
def test_signal_by_hand(dtype):
    state = GroupState.initial(2)
    signal, state = normalised_signal(torch.tensor([1.0, 3.0], dtype=dtype), state, 0.95)
    assert signal.dtype == dtype and signal.tolist() == [-1.0, 1.0]
    assert (state.reward_mean, state.reward_std) == (2.0, 1.0)
    signal, state = normalised_signal(torch.tensor([0.0, 8.0], dtype=dtype), state, 0.95)
    assert state.reward_std == pytest.approx(0.95 + 0.05 * 4)
    assert state.reward_mean == pytest.approx(0.95 * 2 + 0.05 * 4)
    assert signal.tolist() == pytest.approx([-4 / 1.15, 4 / 1.15])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_signal_forgets_scale_and_shift(seed, scale, shift):
    reward = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a, _ = normalised_signal(reward, GroupState.initial(2), 0.9)
    b, _ = normalised_signal(scale * reward + shift, GroupState.initial(2), 0.9)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@dtypes
def test_signal_of_equal_rewards_one_reward_and_none(dtype):
    state = GroupState.initial(2)
    for reward in (torch.full((5,), 0.1, dtype=dtype), torch.ones(1, dtype=dtype)):
        signal, _ = normalised_signal(reward, state, 0.95)
        assert signal.abs().max() < 1e-6
    signal, same = normalised_signal(torch.zeros(0, dtype=dtype), state, 0.95)
    assert signal.shape == (0,) and same == state


PROBS = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])


def test_best_group_by_hand():
    state = update_best_group(GroupState.initial(2), PROBS, torch.tensor([3.0, 0.0, 0.0]), 0.9)
    assert state.reward_M == (2.0, 0.0) and state.best_group == 0
    state = update_best_group(state, PROBS, torch.tensor([0.0, 0.0, 9.0]), 0.9)
    assert state.reward_M == pytest.approx((1.8, 0.6)) and state.best_group == 0 and state.flips == 0
    for _ in range(2):
        state = update_best_group(state, PROBS, torch.tensor([0.0, 0.0, 15.0]), 0.9)
    # 1.8 -> 1.62 -> 1.458, 0.6 -> 1.54 -> 2.386: the other one is best now
    assert state.reward_M == pytest.approx((1.458, 2.386))
    assert (state.best_group, state.flips, state.steps) == (1, 1, 4)


def test_negative_rewards_and_the_sign():
    state = update_best_group(GroupState.initial(2), PROBS, torch.tensor([-5.0, -5.0, -1.0]), 0.9)
    assert state.best_group == 1


def test_a_group_without_mass_is_neither_measured_nor_chosen():
    probs = torch.cat([PROBS, torch.zeros(3, 1)], 1)
    state = update_best_group(GroupState.initial(3), probs, torch.tensor([-3.0, -1.0, -2.0]), 0.9)
    assert state.reward_M[2] is None and state.best_group in (0, 1)
    thin = torch.tensor([[0.99, 0.01]] * 100)
    state = update_best_group(GroupState.initial(2), thin, torch.ones(100), 0.9)
    assert state.reward_M[1] is None and state.best_group == 0 and state.thin_steps == 1
    # It was best once, and loses the place when its sequences are gone.
    rich = GroupState(reward_M=(0.0, 99.0), best_group=1)
    after = update_best_group(rich, thin, torch.ones(100), 0.9)
    assert (after.best_group, after.flips, after.reward_M[1]) == (0, 1, 99.0)


def test_no_rows_and_a_floor_above_all_change_no_choice():
    state = GroupState(reward_M=(1.0, 2.0), best_group=1)
    assert update_best_group(state, torch.zeros(0, 2), torch.zeros(0), 0.9) == state
    assert update_best_group(state, PROBS, torch.zeros(3), 0.9, mass_floor=0.9).best_group == 1


def test_a_tie_keeps_the_present_best():
    state = GroupState(reward_M=(1.0, 1.0), best_group=1)
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


def test_thin_steps_count_in_a_row():
    state = GroupState.initial(2)
    thin, fair = torch.tensor([[0.96, 0.04]] * 10), torch.tensor([[0.5, 0.5]] * 10)
    for probs, expected in ((thin, 1), (thin, 2), (fair, 0), (thin, 1)):
        state = update_best_group(state, probs, torch.ones(10), 0.9)
        assert state.thin_steps == expected


def test_state_survives_json():
    state = update_best_group(GroupState.initial(3), torch.eye(3)[[0, 1, 0]], torch.tensor([0.1, 0.7, 1 / 3]), 0.9)
    _, state = normalised_signal(torch.tensor([0.1, 0.3]), state, 0.95)
    assert GroupState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    with pytest.raises(CheckpointError, match="flips"):
        GroupState.from_dict({k: v for k, v in state.to_dict().items() if k != "flips"})


def test_wrong_number_of_groups_is_refused():
    with pytest.raises(ValueError, match=r"2 groups, the group state 3"):
        update_best_group(GroupState.initial(3), PROBS, torch.ones(3), 0.9)


@pytest.mark.parametrize("weights", ["size", "population"])
@pytest.mark.parametrize("size", [12, 5, 1])
def test_classifier_gradient_is_that_of_the_whole_mini_batch(weights, size):
    g = torch.Generator().manual_seed(3)
    features = torch.randn(12, 4, generator=g, dtype=torch.float64)
    score = torch.randn(12, generator=g, dtype=torch.float64)
    phi = torch.randn(4, 3, generator=g, dtype=torch.float64, requires_grad=True)

    probs = (features @ phi).softmax(1)
    mass = probs.sum(0)
    objective = (probs * score[:, None]).sum(0) / mass
    omega = mass / 12 if weights == "size" else torch.full_like(mass, 1 / 3)
    variance = (omega * (objective - (omega * objective).sum()) ** 2).sum()
    (expected,) = torch.autograd.grad(-0.7 * variance, phi)

    batch = moments(*group_statistics(probs.detach(), score), 12, weights)
    total = torch.zeros_like(phi)
    for start in range(0, 12, size):
        part = slice(start, start + size)
        loss = classifier_loss_terms((features[part] @ phi).softmax(1), score[part], batch, 0.7)
        total += torch.autograd.grad(loss, phi)[0]
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


def test_classifier_learns_the_split_of_two_populations():
    """Stage 1 on its own: scores of two kinds, a linear head, gradient steps: it finds them and does not collapse."""
    g = torch.Generator().manual_seed(0)
    kind = (torch.arange(64) % 4 == 0).double()
    features = torch.stack([kind + 0.3 * torch.randn(64, generator=g, dtype=torch.float64), torch.ones(64).double()], 1)
    score = kind + 0.5 * torch.randn(64, generator=g, dtype=torch.float64)
    phi = 0.01 * torch.randn(2, 2, generator=g, dtype=torch.float64)
    for _ in range(300):
        phi.requires_grad_()
        probs = (features @ phi).softmax(1)
        batch = moments(*group_statistics(probs.detach(), score), 64, "size")
        (gradient,) = torch.autograd.grad(classifier_loss_terms(probs, score, batch, 1.0), phi)
        phi = (phi - 5.0 * gradient).detach()
    domains = ["hard" if k else "easy" for k in kind]
    metrics = diagnostics(probs, score, torch.zeros(64), torch.ones(64), domains, best_group=0)
    assert metrics["group/domain_auc"] > 0.9
    assert min(metrics["group/0/mass"], metrics["group/1/mass"]) > 0.15


def example(**options):
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    reward = torch.tensor([0.0, 3.0, 3.0, 6.0])
    kl, length = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5, 5, 5, 9])
    domains = ["easy", "easy", "hard", "hard"]
    return diagnostics(probs, reward, kl, length, domains, **options)


def test_diagnostics_by_hand():
    metrics = example(best_group=1, beta=0.1)
    expected = {
        "group/0/mass": 0.75, "group/1/mass": 0.25,
        "group/0/reward": 2.0, "group/1/reward": 6.0,
        "group/0/objective": 2.0, "group/1/objective": 6.0,
        "group/0/kl": 2.0, "group/1/kl": 4.0,
        "group/variance": 3.0, "group/entropy": 0.0, "group/explained_share": 3 / 4.5,
        "group/weight_min": 0.4, "group/weight_negative": 0.0,
        "group/p_high": 0.25, "group/reward_correlation": 4 * 0.1875 / math.sqrt(0.1875 * 4.5),
        "group/length_correlation": 1.0,
        "group/domain_auc": 0.75,
        # joint (1/2, 0; 1/4, 1/4)
        "group/domain_information": 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2),
        "group/reward_correlation/easy": 0.0, "group/length_correlation/easy": 0.0,
        "group/reward_correlation/hard": 1.0, "group/length_correlation/hard": 1.0,
    }  # fmt: skip
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
    assert all(type(value) is float for value in metrics.values())


def test_diagnostics_use_the_score_and_the_bounds():
    metrics = example(score_B=torch.tensor([1.0, 1.0, 1.0, 2.0]), weights="population")
    assert metrics["group/1/objective"] == 2.0 and metrics["group/1/reward"] == 6.0
    assert metrics["group/variance"] == pytest.approx(0.25)
    unbounded, bounded = example(beta=1.0), example(beta=1.0, cap=0.8)
    assert unbounded["group/weight_negative"] == 0.25 and unbounded["group/weight_min"] == pytest.approx(-5.0)
    assert bounded["group/weight_negative"] == 0.0 and bounded["group/weight_min"] == pytest.approx(0.2)
    assert example(beta=1.0, mass_floor=0.3)["group/weight_min"] == 1.0


@pytest.mark.parametrize("groups", [1, 2, 6])
@dtypes
def test_diagnostics_of_degenerate_batches_are_finite(groups, dtype):
    one_sided = torch.zeros(4, groups, dtype=dtype)
    one_sided[:, 0] = 1
    same = torch.full((4,), 0.1, dtype=dtype)
    for probs, weights in ((one_sided, "size"), (one_sided, "population"), (one_sided[:1], "size")):
        rows = len(probs)
        metrics = diagnostics(
            probs, same[:rows], same[:rows], torch.full((rows,), 3), ["a", "a", "b", "b"][:rows],
            best_group=groups - 1, weights=weights, beta=0.3, mass_floor=0.05, cap=0.8,
        )  # fmt: skip
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["group/0/mass"] == 1.0 and metrics["group/variance"] == pytest.approx(0.0, abs=1e-14)
        assert metrics["group/weight_min"] == pytest.approx(1.0)
    assert diagnostics(one_sided[:0], same[:0], same[:0], same[:0], []) == {}


def test_diagnostics_check_the_labels():
    with pytest.raises(ValueError, match="1 domain labels for 3 sequences"):
        diagnostics(PROBS, torch.ones(3), torch.ones(3), torch.ones(3), ["a"])


def test_warnings_in_words():
    healthy = {"group/reward_correlation": 0.4, "group/weight_negative": 0.0, "group/weight_min": 0.5}
    state = GroupState(reward_M=(1.0, 0.0), best_group=0)
    assert warnings(healthy, state) == []
    assert warnings(healthy, replace(state, thin_steps=19)) == []
    (collapse,) = warnings(healthy, replace(state, thin_steps=20))
    assert "collapsed" in collapse and "20 iterations" in collapse and "5%" in collapse
    (wrong,) = warnings({**healthy, "group/reward_correlation": -0.25}, state)
    assert "Group 0" in wrong and "-0.25" in wrong
    (negative,) = warnings({**healthy, "group/weight_negative": 0.02, "group/weight_min": -0.3}, state)
    assert "2.0%" in negative and "-0.30" in negative
    assert warnings({**healthy, "group/weight_negative": 0.01}, state) == []
    one = GroupState(reward_M=(1.0,), best_group=0, thin_steps=50)
    assert warnings({"group/reward_correlation": -1.0}, one) == []


def test_collapse_is_noticed_by_running_into_it():
    state, probs = GroupState.initial(2), torch.tensor([[0.99, 0.01]] * 32)
    for step in range(20):
        assert not any("collapsed" in said for said in warnings({}, state)), step
        state = update_best_group(state, probs, torch.arange(32.0), 0.9)
    assert any("collapsed" in said for said in warnings({}, state))
