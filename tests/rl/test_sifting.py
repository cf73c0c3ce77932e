"""One bad number in a rollout batch: the response is left out as if it were not there, or its reward pulled in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.algorithms.state import Health, RLState
from gipo_mc.config import load_config
from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.errors import NumericsError
from gipo_mc.rl import gi_ppo
from gipo_mc.rl.metrics import PATIENCE, check_health, check_start
from gipo_mc.rl.reward_sources.troubles import Troubles
from gipo_mc.rl.setup import restore
from gipo_mc.rl.sifting import finite_rewards, sift
from gipo_mc.types import Prompt
from tests.rl.test_experience import experience

TOKENIZER = builtin_tokenizer()


def _sift(
    change: dict[str, Tensor], *overrides: str, health: Health | None = None, troubles: Troubles | None = None
) -> Any:
    whole = experience()
    outputs = replace(whole.outputs, **change)
    prompts = [Prompt(row, (1,), domain, f"prompt {row}") for row, domain in enumerate("abcde")]
    config = load_config(None, ["model.reward=runs/reward", *overrides])
    return sift(prompts, whole.rollout, outputs, health or Health(), config, TOKENIZER, troubles), outputs


def _rewards(*values: float) -> dict[str, Tensor]:
    return {"reward_B": torch.tensor(values)}


def test_a_healthy_batch_is_handed_on_untouched() -> None:
    (sifted, health), outputs = _sift({})
    assert sifted.outputs is outputs and not sifted.metrics and not sifted.bad_rows and not sifted.cause
    assert health.counts == {} and health.reach is not None and health.reach > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_none_takes_its_response_away(value: float) -> None:
    (sifted, health), outputs = _sift(_rewards(0.5, 1.0, value, 0.25, -1.0))
    rows = torch.tensor([0, 1, 3, 4])
    for name in ("reward_B", "behaviour_logp_BT", "values_BT", "group_probs_BM"):
        assert torch.equal(getattr(sifted.outputs, name), getattr(outputs, name)[rows]), name
    assert sifted.rollout.domain_B == ("a", "b", "d", "e") and [p.index for p in sifted.prompts] == [0, 1, 3, 4]
    assert sifted.metrics == {"reward/invalid": 1.0} and health.counts == {"invalid": 1}
    (row,) = sifted.bad_rows
    assert (row["prompt"], row["domain"], row["value"], row["reward"]) == ("prompt 2", "c", f"{value:g}", None)
    assert row["invalid"] == "reward" and row["response"]
    assert "model.reward=runs/reward" in sifted.cause and "domain c" in sifted.cause


def test_what_a_reward_said_of_its_failure_ends_the_sentence() -> None:
    told: list[str] = []
    troubles = Troubles(told.append)
    for _ in range(2):
        troubles.hold("f failed.")
    (sifted, _), _ = _sift(_rewards(0.5, 1.0, math.nan, 0.25, -1.0), troubles=troubles)
    assert (
        sifted.cause.endswith(" f failed.")
        and sifted.cause.count("f failed") == 1
        and "left out" in sifted.cause
        and not told
    )
    troubles.hold("f failed again.")
    (sifted, _), _ = _sift({}, troubles=troubles)  # what a reward of several can do without
    assert sifted.cause == "" and told == ["f failed again."] and troubles.take() == []


SOURCES = {
    "policy": ("behaviour_logp_BT", "model.policy"),
    "reference": ("reference_logp_BT", "model.reference"),
    "critic": ("values_BT", "model.critic"),
    "classifier": ("group_probs_BM", "model.critic"),
}


@pytest.mark.parametrize("value", [math.nan, -1e30])
@pytest.mark.parametrize("source", SOURCES)
def test_the_model_that_a_bad_number_comes_from_is_named(source: str, value: float) -> None:
    field, key = SOURCES[source]
    bad = getattr(experience().outputs, field).abs().neg()
    one = bad.clone()
    one[2, 0] = value
    (sifted, _), _ = _sift({field: one})
    assert sifted.metrics == {f"{source}/invalid": 1.0} and key in sifted.cause and len(sifted.prompts) == 4
    # All of them: the model is broken, and the run stops at once.
    with pytest.raises(NumericsError, match=key):
        _sift({field: torch.full_like(bad, value)})


def test_a_reward_model_that_says_nothing_is_broken_and_a_function_may_be_back_soon() -> None:
    nothing = _rewards(*[math.nan] * 5)
    with pytest.raises(NumericsError, match=r"model\.reward=runs/reward"):
        _sift(nothing)
    (sifted, health), _ = _sift(nothing, "model.reward=python:a:b")
    assert len(sifted.prompts) == 0 and sifted.metrics == {"reward/invalid": 5.0} and health.counts == {"invalid": 1}


def test_without_a_critic_the_other_samples_of_the_prompt_go_too() -> None:
    rloo = [
        "algorithm.name=rloo",
        "rollout.samples_per_prompt=5",
        "rollout.batch_size=5",
        "algorithm.mini_batch_size=5",
    ]
    (sifted, _), _ = _sift(_rewards(0.5, 1.0, math.nan, 0.25, -1.0), *rloo)
    assert len(sifted.prompts) == 0 and sifted.metrics == {"reward/invalid": 1.0}


@pytest.mark.parametrize("value", [1e4, 1e30, -1e30, -9999.0])
def test_a_sentinel_counts_as_the_nearest_reward_that_is_none(value: float) -> None:
    (sifted, health), _ = _sift(_rewards(0.5, 1.0, value, 0.25, -1.0))
    assert sifted.outputs.reward_B.tolist() == [0.5, 1.0, 1.0 if value > 0 else -1.0, 0.25, -1.0]
    assert sifted.metrics["reward/clipped"] == 1.0 and len(sifted.prompts) == 5 and not sifted.cause
    assert value in [pytest.approx(sifted.metrics[name]) for name in ("reward/min", "reward/max")]
    assert sifted.bad_rows[0]["clipped"] is True and health.counts == {}
    (off, _), outputs = _sift(_rewards(0.5, 1.0, 1e4, 0.25, -1.0), "algorithm.outlier=0")
    assert off.outputs is outputs


def test_what_no_scale_can_tell_from_a_reward_is_left_alone() -> None:
    """Rare and large against the rest, and still meant: 1 among zeros, and what was usual before this batch."""
    for health, rewards in ((Health(), (0.0, 0.0, 1.0, 0.0, 1e-6)), (Health(reach=600.0), (0.0, 0.0, 9e3, 0.0, 0.0))):
        (sifted, _), outputs = _sift(_rewards(*rewards), health=health)
        assert sifted.outputs is outputs


def test_rewards_that_are_all_beyond_counting_are_none() -> None:
    (sifted, health), _ = _sift(_rewards(*[-1e30] * 5), "model.reward=python:a:b")
    assert sifted.metrics == {"reward/invalid": 5.0} and health.counts == {"invalid": 1}


def test_an_evaluation_leaves_them_out_too() -> None:
    config = load_config(None, [])
    rewards = torch.tensor([0.0, 1.0, math.nan, -9999.0, 0.5, 0.25, 0.0, 0.5, 1.0, 0.0])
    kept, domains, counts = finite_rewards(rewards, list("abcdefghij"), config, "gold")
    assert counts == {"gold/invalid": 1.0, "gold/clipped": 1.0} and list(domains) == list("abdefghij")
    assert kept.min() == 0.0 and len(kept) == 9
    same, _, counts = finite_rewards(rewards[:2], ["a", "b"], config, "gold")
    assert counts == {} and same.tolist() == [0.0, 1.0]


def test_a_run_stops_after_too_many_in_a_row_and_the_count_survives_a_checkpoint() -> None:
    config = load_config(None, ["algorithm.invalid_patience=2"])
    health = Health()
    for _ in range(2):
        check_health(health, "", config)
        health = Health.from_dict(json.loads(json.dumps(health.counted(invalid=True).to_dict())))
    with pytest.raises(NumericsError, match=r"The cause\. .*last 2 iterations.*invalid_patience=2"):
        check_health(health, "The cause.", config)
    assert health.counted(invalid=False).counts == {}
    for name, words in (("skipped", "Every optimizer step"), ("left", r"policy\.lr is far too large")):
        with pytest.raises(NumericsError, match=words):
            check_health(Health(counts={name: PATIENCE}), "", config)


def test_a_policy_that_is_not_the_reference_it_starts_as_is_noticed() -> None:
    whole = experience()
    same = replace(whole.outputs, reference_logp_BT=whole.outputs.behaviour_logp_BT.clone())
    check_start(replace(whole, outputs=same), torch.float32)
    drifted = replace(same, reference_logp_BT=same.behaviour_logp_BT + 1e-3)
    with pytest.raises(NumericsError, match=r"their KL must be 0, but their log-probs differ by 0\.001 nats"):
        check_start(replace(whole, outputs=drifted), torch.float32)
    check_start(replace(whole, outputs=drifted), torch.bfloat16)


def test_what_a_run_remembers_is_saved_and_comes_back() -> None:
    """Also what tells that something goes wrong: a run that is stopped each hour would never notice it else."""
    health = Health(1.5, {"R_var": 0.2}, {"invalid": 2})
    state = replace(RLState.initial(2), signal_std=0.5, health=health)
    saved: dict[str, Any] = {}
    session: Any = SimpleNamespace(save=lambda step, engines, tokenizers, state: saved.update(state))
    models = SimpleNamespace(reference_samples=None)
    setup: Any = SimpleNamespace(engines={}, tokenizers={}, models=models)
    gi_ppo._save(session, setup, state, 3)
    session.resume = lambda engines: json.loads(json.dumps(saved))
    assert restore(session, setup) == state
