"""One bad number in a rollout batch: the response is left out as if it were not there, or its reward pulled in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.algorithms.state import Health, RLState
from gipo_mc.config import load_config
from gipo_mc.errors import NumericsError
from gipo_mc.parallel.engine import Engine
from gipo_mc.rl import gi_ppo
from gipo_mc.rl.experience import ModelOutputs
from gipo_mc.rl.metrics import PATIENCE, check_health, check_start
from gipo_mc.rl.setup import restore, set_up
from gipo_mc.rl.sifting import finite_rewards, sift
from gipo_mc.run.session import open_session
from gipo_mc.types import Prompt
from tests.ranks import LAYOUTS, run_ranks
from tests.rl.test_experience import experience
from tests.runs import GradientRecorder, read_metrics, rl_config, save_models, whole_gradients

BAD_ROW = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


class Words:
    """A tokenizer as far as the lines of samples.jsonl need one."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def _sift(change: dict[str, Tensor], *overrides: str, health: Health | None = None) -> Any:
    whole = experience()
    outputs = replace(whole.outputs, **change)
    prompts = [Prompt(row, (1,), domain, f"prompt {row}") for row, domain in enumerate("abcde")]
    config = load_config(None, ["model.reward=runs/reward", *overrides])
    return sift(prompts, whole.rollout, outputs, health or Health(), config, Words()), outputs  # type: ignore[arg-type]


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


# -------------------------------------------------------------------------------------------- the whole iteration
def _iterate(rank: int, folder: Path, models: dict[str, str], layout: dict[str, Any], how: str) -> Any:
    """Metrics, state and gradients of an iteration in which row `BAD_ROW` has no reward ("nan"), or is taken out of
    the batch by hand ("cut")."""
    layout = {key: value for key, value in layout.items() if key != "data"}
    config = rl_config(folder, models, "eval.prompts=0", "algorithm.epochs=1", **layout)
    recorder = GradientRecorder()
    Engine.step = lambda self: recorder(self)  # type: ignore[method-assign]  # this process is the test's own
    score, whole = gi_ppo.score, gi_ppo.sift

    def spoil(*args: Any) -> ModelOutputs:
        outputs: ModelOutputs = score(*args)
        if how == "nan":
            outputs.reward_B[BAD_ROW] = math.nan
        return outputs

    def cut(prompts: Any, rollout: Any, outputs: Any, *rest: Any) -> Any:
        rows = torch.tensor([row for row in range(len(prompts)) if row != BAD_ROW])
        return whole([prompts[row] for row in rows], rollout.rows(rows), outputs.rows(rows), *rest)

    gi_ppo.score = spoil
    if how == "cut":
        gi_ppo.sift = cut
    with open_session(config, "test") as session:
        setup = set_up(session)
        state, metrics = gi_ppo.iterate(session, setup, restore(session, setup), 0)
        engines = [engine for _, engine in sorted(setup.engines.items())]
        steps = len(recorder.gradients) // len(engines)
        engines = [engine for engine in engines for _ in range(steps)]
        gradients = [whole_gradients(e, g) for e, g in zip(engines, recorder.gradients, strict=True)]
    return {k: v for k, v in metrics.items() if not k.startswith(("time/", "throughput/"))}, state, gradients


def _run(folder: Path, models: dict[str, str], name: str, how: str) -> tuple[dict[str, float], RLState, Any]:
    layout = LAYOUTS[name]
    ranks = layout.get("tensor", 1) * layout.get("pipeline", 1) * layout.get("data", 1)
    results = run_ranks(_iterate, ranks, folder / f"{name}-{how}", models, layout, how)
    for metrics, state, _ in results[1:]:
        assert metrics == results[0][0] and state == results[0][1], "ranks differ"
    return results[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> Any:
    return _run(tmp_path_factory.mktemp("without"), models, "1", "cut")


@pytest.mark.parametrize("name", ["1", "TP2", "DP2"])
def test_the_iteration_is_that_of_the_batch_without_the_response(
    tmp_path: Path, models: dict[str, str], without: Any, name: str
) -> None:
    metrics, state, gradients = _run(tmp_path, models, name, "nan")
    assert metrics.pop("reward/invalid") == 1.0 and state.health.counts == {"invalid": 1}
    wanted_metrics, wanted_state, wanted = without
    if name == "1":
        assert metrics == wanted_metrics and replace(state, health=wanted_state.health) == wanted_state
    for own, other in zip(gradients, wanted, strict=True):
        error = sum(float((own[key] - tensor).double().square().sum()) for key, tensor in other.items())
        size = sum(float(tensor.double().square().sum()) for tensor in other.values())
        assert size > 0 and error <= 1e-10 * size
    rows = [json.loads(line) for line in (tmp_path / f"{name}-nan/run/samples.jsonl").read_text().splitlines()]
    assert [row["value"] for row in rows if row.get("invalid")] == ["nan"]


def _fewer_than_ranks(rank: int, folder: Path, models: dict[str, str]) -> Any:
    config = rl_config(folder, models, "eval.prompts=0", "run.iterations=9", "algorithm.invalid_patience=2")
    score = gi_ppo.score

    def spoil(*args: Any) -> ModelOutputs:
        outputs: ModelOutputs = score(*args)
        outputs.reward_B[1:] = math.nan
        return outputs

    gi_ppo.score = spoil
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    made = gi_ppo.set_up

    def keep(session: Any) -> Any:
        setup = made(session)
        before.update({name: p.detach().clone() for name, p in setup.models.policy.model.named_parameters()})
        after.update(dict(setup.models.policy.model.named_parameters()))
        return setup

    gi_ppo.set_up = keep
    try:
        gi_ppo.train(config)
    except NumericsError as error:
        return str(error), all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    return "", False


def test_fewer_responses_than_ranks_change_nothing_and_in_the_end_stop_the_run(
    tmp_path: Path, models: dict[str, str]
) -> None:
    for said, unchanged in run_ranks(_fewer_than_ranks, 2, tmp_path, models):
        assert "17 responses have no usable reward (model.reward=" in said and "last 2 iterations" in said
        assert unchanged
    rows = read_metrics(tmp_path / "run")
    assert [row["reward/invalid"] for row in rows] == [17.0, 17.0] and all("policy/loss" not in row for row in rows)
    status = json.loads((tmp_path / "run" / "run_status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5)


def _train(rank: int, folder: Path, models: dict[str, str], overrides: list[str], broken: str, bad_rank: int) -> Any:
    """(exit code, message, are policy and critic as they were?) of a run; `broken`: the model one of whose weights is
    NaN on one rank."""
    layout = {"tensor": 2} if "DP2" not in overrides else {}
    config = rl_config(
        folder, models, "eval.prompts=0", "run.iterations=9", *(o for o in overrides if o != "DP2"), **layout
    )
    before: dict[str, Tensor] = {}
    now: dict[str, Tensor] = {}
    made = gi_ppo.set_up

    def spoil(session: Any) -> Any:
        setup = made(session)
        for role, engine in setup.engines.items():
            now.update({f"{role}.{name}": p for name, p in engine.model.named_parameters()})
        before.update({name: p.detach().clone() for name, p in now.items()})
        if broken and rank == bad_rank:
            engine = getattr(setup.models, broken)
            engine = engine.engine if broken == "reward" else engine
            with torch.no_grad():
                next(p for name, p in engine.model.named_parameters() if "mlp" in name)[0] = math.nan
        return setup

    gi_ppo.set_up = spoil
    try:
        gi_ppo.train(config)
    except NumericsError as error:
        same = [torch.equal(tensor, now[name]) for name, tensor in before.items() if not now[name].isnan().any()]
        return error.exit_code, str(error), all(same)
    return 0, "", False


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("reference", "log-prob of the reference: model.reference="),
        ("critic", "value of the critic: model.critic="),
        ("reward", "reward: model.reward="),
        ("policy", "logits are not finite"),
    ],
)
def test_a_broken_model_is_named_and_nothing_changes_on_any_rank(
    tmp_path: Path, models: dict[str, str], broken: str, words: str
) -> None:
    for code, said, unchanged in run_ranks(_train, 2, tmp_path, models, [], broken, 1):
        assert code == 5 and words in said and unchanged, said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("section", ["policy", "critic"])
def test_a_learning_rate_that_leaves_nothing_of_a_model_stops_in_the_first_iteration(
    tmp_path: Path, models: dict[str, str], section: str
) -> None:
    for code, said, _ in run_ranks(_train, 2, tmp_path, models, ["DP2", f"{section}.lr=1e6"], "", 1):
        assert code == 5 and f"{section}.lr=1e+06 changed the weights by" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_policy_that_is_not_the_reference_it_starts_as_is_noticed() -> None:
    whole = experience()
    same = replace(whole.outputs, reference_logp_BT=whole.outputs.behaviour_logp_BT.clone())
    check_start(replace(whole, outputs=same), torch.float32)
    drifted = replace(same, reference_logp_BT=same.behaviour_logp_BT + 1e-3)
    with pytest.raises(NumericsError, match=r"their KL must be 0, but their log-probs differ by 0\.001 nats"):
        check_start(replace(whole, outputs=drifted), torch.float32)
    check_start(replace(whole, outputs=drifted), torch.bfloat16)


def _outliers(rank: int, folder: Path, models: dict[str, str], value: float, overrides: list[str]) -> Any:
    """signal_std after each of 8 iterations, one reward of which, in the third, is `value`."""
    config = rl_config(folder, models, "eval.prompts=0", "run.iterations=8", *overrides)
    score, calls, states = gi_ppo.score, [0], []

    def spoil(*args: Any) -> ModelOutputs:
        outputs: ModelOutputs = score(*args)
        calls[0] += 1
        if calls[0] == 3:
            outputs.reward_B[BAD_ROW] = value
        return outputs

    iterate = gi_ppo.iterate

    def keep(*args: Any) -> Any:
        state, metrics = iterate(*args)
        states.append(state.signal_std)
        return state, metrics

    gi_ppo.score, gi_ppo.iterate = spoil, keep
    gi_ppo.train(config)
    return states


@pytest.mark.parametrize("value", [-9999.0, 1e30])
def test_a_sentinel_in_a_run_leaves_the_scale_and_is_told(tmp_path: Path, models: dict[str, str], value: float) -> None:
    (stds,) = run_ranks(_outliers, 1, tmp_path, models, value, [])
    assert max(stds) < 2 * stds[1], stds
    rows = read_metrics(tmp_path / "run")
    assert [row.get("reward/clipped") for row in rows] == [None, None, 1.0] + [None] * 5
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert "counts as the nearest reward" in (tmp_path / "run" / "warnings.jsonl").read_text()


def test_without_the_rule_the_run_says_that_the_method_is_off(tmp_path: Path, models: dict[str, str]) -> None:
    (stds,) = run_ranks(_outliers, 1, tmp_path, models, 1e12, ["algorithm.outlier=0"])
    assert stds[-1] > 1e5 * stds[1]
    said = (tmp_path / "run" / "warnings.jsonl").read_text()
    assert "in effect off: the spread of the signal S has been under a thousandth" in said
