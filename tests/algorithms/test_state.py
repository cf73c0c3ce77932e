"""What an RL run remembers: running figures by hand, and the form in which checkpoints keep them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.algorithms.distribution import reach_of, winsorised
from gipo_mc.algorithms.group_inference import update_best_group
from gipo_mc.algorithms.state import Health, RLState, normalised_signal, track_reward
from gipo_mc.errors import CheckpointError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reward_is_tracked_by_hand(dtype):
    state = track_reward(RLState.initial(2), torch.tensor([1.0, 3.0], dtype=dtype), 0.95)
    assert (state.reward_mean, state.reward_std) == (2.0, 1.0)
    state = track_reward(state, torch.tensor([0.0, 8.0], dtype=dtype), 0.95)
    assert state.reward_std == pytest.approx(0.95 + 0.05 * 4)
    assert state.reward_mean == pytest.approx(0.95 * 2 + 0.05 * 4)
    assert track_reward(state, torch.zeros(0, dtype=dtype), 0.95) == state


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_signal_forgets_scale_and_shift(seed, scale, shift):
    reward = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a, _ = normalised_signal(reward, RLState.initial(2), 0.9)
    b, state = normalised_signal(scale * reward + shift, RLState.initial(2), 0.9)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert state.signal_std == pytest.approx(scale * float(reward.std(correction=0)))


def _state() -> RLState:
    state = track_reward(RLState.initial(3), torch.tensor([0.1, 0.7]), 0.95)
    _, state = normalised_signal(torch.tensor([0.1, 0.3]), state, 0.95)
    groups = update_best_group(state.groups, torch.eye(3)[[0, 1, 0]], torch.tensor([0.1, 0.7, 1 / 3]), 0.9)
    return replace(state, groups=groups, alarms={"collapsed": 3}, dro_weight_M=(0.1, 0.9, 0.0), kl_coef=0.2)


def test_state_survives_json():
    state = _state()
    assert RLState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_a_checkpoint_keeps_the_names_that_it_always_had():
    """Runs of earlier versions go on: their state.json holds these fields, in one flat object."""
    saved = _state().to_dict()
    assert set(saved) == {
        "reward_M", "weight_M", "reward_mean", "reward_std", "signal_std", "kl_coef", "best_group", "flips", "alarms",
        "steps",
    }  # fmt: skip
    assert saved["reward_M"][2] is None and saved["weight_M"] == [0.1, 0.9, 0.0] and saved["best_group"] == 1


@pytest.mark.parametrize("change", [{"flips": None}, {"surprise": 1}])
def test_a_state_of_another_version_is_refused(change):
    saved = _state().to_dict()
    name, value = next(iter(change.items()))
    saved = {**saved, name: value} if value is not None else {k: v for k, v in saved.items() if k != name}
    with pytest.raises(CheckpointError, match=name):
        RLState.from_dict(saved)


@pytest.mark.parametrize("size", [12, 64])
@pytest.mark.parametrize("value", [1e4, 1e30, -1e30, -9999.0])
@pytest.mark.parametrize("at", [0, 5])
def test_running_figures_recover_from_one_outlier(size, value, at):
    """As sifting hands them on; without that, signal_std is 1e28 after one reward of 1e30."""

    def run(outlier):
        generator, state = torch.Generator().manual_seed(3), RLState.initial(2)
        for step in range(at + 20):
            reward = torch.randn(size, generator=generator)
            if outlier and step == at:
                reward[2] = value
            clean, _ = winsorised(reward, 20.0, state.health.reach or 0.0)
            state = replace(state, health=state.health.reached(reach_of(clean), 0.95))
            _, state = normalised_signal(clean, track_reward(state, clean, 0.95), 0.95)
        return state

    bad, good = run(True), run(False)
    for name in ("reward_mean", "reward_std", "signal_std"):
        assert getattr(bad, name) == pytest.approx(getattr(good, name), rel=0.1, abs=0.05), name
    assert bad.health.reach == pytest.approx(good.health.reach, rel=0.25)


def test_a_signal_far_out_does_not_decide_the_scale_of_all():
    signal = torch.tensor([0.0, 1.0, -1.0, 1e30, 0.5])
    _, state = normalised_signal(signal, RLState.initial(2), 0.95)
    assert state.signal_std == pytest.approx(float(torch.tensor([0.0, 1.0, -1.0, 1.0, 0.5]).std(correction=0)))


def test_health_stands_beside_the_state_and_checkpoints_without_it_are_read():
    health = Health(1.5, {"R_var": 0.2}, {"invalid": 2})
    assert Health.from_dict(json.loads(json.dumps(health.to_dict()))) == health
    assert Health.from_dict(None) == Health() == RLState.from_dict(_state().to_dict()).health
    assert health.counted(invalid=True).counts == {"invalid": 3} and health.counted(skipped=True).counts == {
        "invalid": 2,
        "skipped": 1,
    }
    assert health.reached(100.0, 0.5).reach == 0.5 * 1.5 + 0.5 * 3.0  # one odd batch at most doubles what enters
