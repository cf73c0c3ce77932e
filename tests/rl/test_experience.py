"""Rows of an experience, and the objective over them: every field of the same rows, and no form chosen by accident."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.algorithms.group_source import GroupSource
from gipo_mc.algorithms.state import RLState
from gipo_mc.config import load_config
from gipo_mc.ops import ObjectiveInputs, group_objective
from gipo_mc.rl import objective as objective_module
from gipo_mc.rl.experience import Experience, ModelOutputs
from gipo_mc.rl.objective import Objective
from gipo_mc.rl.shaping import shape
from gipo_mc.types import Rollout, Sequences

B, T, M = 5, 4, 2


def experience(**changes: Any) -> Experience:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    length_B = torch.tensor([4, 1, 3, 2, 4])
    sequences = Sequences(torch.randint(0, 9, (B, 7), generator=generator), torch.tensor([3, 1, 2, 3, 1]), length_B)
    rollout = Rollout(sequences, torch.arange(B) + 10, tuple("abcde"), random(B, T), length_B == 4)
    outputs = ModelOutputs(random(B, T), random(B, T), random(B, T), random(B, T), random(B), random(B, M).softmax(1))
    outputs = replace(outputs, level_B=random(B), disagreement_B=random(B), reward_parts={"part": random(B)})
    inputs = ObjectiveInputs(
        outputs.behaviour_logp_BT,
        outputs.reference_logp_BT,
        random(B, T),
        length_B,
        outputs.group_probs_BM,
        random(B),
        random(B).abs(),
    )
    return replace(Experience(rollout, outputs, inputs, random(B, T), random(B)), **changes)


def test_rows_are_the_rows_of_every_field() -> None:
    whole = experience(signal_form="log_prob", signal_weight_BT=torch.arange(B * T).reshape(B, T).float())
    rows_B = torch.tensor([3, 1])
    part = whole.rows(rows_B)
    assert len(part) == 2 and part.signal_form == "log_prob"
    assert part.rollout.domain_B == ("d", "b") and part.rollout.width == whole.rollout.width
    assert part.rollout.prompt_index_B.tolist() == [13, 11] and part.rollout.truncated_B.tolist() == [False, False]
    assert part.rollout.sequences.tokens_BL.tolist() == whole.rollout.sequences.tokens_BL[rows_B, :5].tolist()
    for one, other in ((whole.outputs, part.outputs),):
        for name in {field.name for field in fields(one)} - {"reward_parts"}:
            assert torch.equal(getattr(one, name)[rows_B], getattr(other, name)), name
    assert torch.equal(whole.outputs.reward_parts["part"][rows_B], part.outputs.reward_parts["part"])
    assert torch.equal(part.outputs.gain_B, part.outputs.reward_B - part.outputs.level_B)
    without = replace(whole.outputs, level_B=None, disagreement_B=None).rows(rows_B)
    assert without.level_B is None and without.disagreement_B is None
    for name in ObjectiveInputs._fields:
        assert torch.equal(getattr(whole.inputs, name)[rows_B], getattr(part.inputs, name)), name
    assert torch.equal(whole.return_BT[rows_B], part.return_BT) and torch.equal(whole.kl_B[rows_B], part.kl_B)
    assert whole.signal_weight_BT is not None and part.signal_weight_BT is not None
    assert torch.equal(whole.signal_weight_BT[rows_B], part.signal_weight_BT)
    assert experience().rows(rows_B).signal_weight_BT is None


@pytest.mark.parametrize("form", ["ratio", "log_prob", "log_prob_mean"])
def test_the_form_of_the_signal_is_the_one_that_is_said(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the advantages as the weight of log pi changes nothing but the number of passes."""
    config = load_config(None, ["algorithm.kl_estimator=k3"])
    calls = []
    monkeypatch.setattr(
        objective_module, "group_objective", lambda *a, **k: calls.append(k) or group_objective(*a, **k)
    )
    whole = experience(signal_form=form)
    logp_BT = whole.inputs.behaviour_logp_BT + 0.1
    once = Objective.of(whole, config).of_log_probs(logp_BT)
    assert len(calls) == 1
    copied = replace(whole, signal_weight_BT=whole.inputs.advantage_BT.clone())
    twice = Objective.of(copied, config).of_log_probs(logp_BT)
    assert len(calls) == 3
    for name, one, other in zip(once._fields, once, twice, strict=True):
        assert torch.equal(one, other), name


def test_a_weight_of_its_own_changes_the_signal_alone() -> None:
    config = load_config(None, [])
    plain = experience(signal_form="log_prob")
    other = replace(plain, signal_weight_BT=2.0 * plain.inputs.advantage_BT)
    logp_BT = plain.inputs.behaviour_logp_BT - 0.2
    one, two = (
        Objective.of(e, config).rows(torch.tensor([4, 0])).of_log_probs(logp_BT[[4, 0]]) for e in (plain, other)
    )
    torch.testing.assert_close(two.signal_B, 2.0 * one.signal_B)
    assert torch.equal(one.surrogate_B, two.surrogate_B) and torch.equal(one.mass_M, two.mass_M)


def test_a_saturating_reward_is_paid_for_the_gain_and_the_signal_reads_the_reward() -> None:
    """What is added to all rewards of a prompt, and so to its level, changes nothing of what is paid."""
    whole = experience()
    words = ["algorithm.name=threshold_gi_ppo", "algorithm.reference_samples=4"]
    saturating = [*words, "algorithm.reward_transform=log_sigmoid", "algorithm.reward_scale=2"]

    def shaped(words: list[str], level: float = 0.0) -> Experience:
        assert whole.outputs.level_B is not None
        moved = {"level_B": whole.outputs.level_B + level, "reward_B": whole.outputs.reward_B + level}
        state = RLState.initial(2)
        config = load_config(None, words)
        return shape(whole.rollout, replace(whole.outputs, **moved), state, config, GroupSource("reward", 2))[0]

    last_B1 = (whole.rollout.sequences.response_length_B - 1)[:, None]
    plain, paid = shaped(words), shaped(saturating)
    difference_B = (paid.return_BT - plain.return_BT).gather(1, last_B1)[:, 0]
    logsigmoid_B = torch.nn.functional.logsigmoid(whole.outputs.gain_B / 2)
    torch.testing.assert_close(difference_B, logsigmoid_B - whole.outputs.reward_B)
    torch.testing.assert_close(shaped(saturating, level=3.0).return_BT, paid.return_BT)
    assert torch.equal(paid.inputs.behaviour_signal_B, plain.inputs.behaviour_signal_B)
