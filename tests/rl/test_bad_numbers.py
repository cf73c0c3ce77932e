"""Bad numbers in whole iterations: no trace of the response in any layout, no parameter changed, the cause named."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.algorithms.state import RLState
from gipo_mc.errors import NumericsError
from gipo_mc.parallel.engine import Engine
from gipo_mc.rl import gi_ppo
from gipo_mc.rl.experience import ModelOutputs
from gipo_mc.rl.setup import restore, set_up
from gipo_mc.run.session import open_session
from tests.ranks import LAYOUTS, run_ranks
from tests.runs import GradientRecorder, read_metrics, rl_config, save_models, whole_gradients

BAD_ROW = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


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
    return (
        {k: v for k, v in metrics.items() if not k.startswith(("time/", "throughput/", "padding/"))},
        state,
        gradients,
    )


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
        assert "Responses without a usable reward: 17 (model.reward=" in said and "last 2 iterations" in said
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


def _outliers(rank: int, folder: Path, models: dict[str, str], value: float, count: int) -> Any:
    """signal_std after each iteration, `count` of whose rewards, in the third, are `value`."""
    iterations = f"run.iterations={5 if count == 1 else 9}"
    config = rl_config(folder, models, "eval.prompts=0", "algorithm.epochs=1", iterations)
    score, calls, states = gi_ppo.score, [0], []

    def spoil(*args: Any) -> ModelOutputs:
        outputs: ModelOutputs = score(*args)
        calls[0] += 1
        if calls[0] == 3:
            outputs.reward_B[BAD_ROW : BAD_ROW + count] = value
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
    (stds,) = run_ranks(_outliers, 1, tmp_path, models, value, 1)
    assert max(stds) < 2 * stds[1], stds
    rows = read_metrics(tmp_path / "run")
    assert [row.get("reward/clipped") for row in rows] == [None, None, 1.0] + [None] * 2
    assert all(math.isfinite(value) for row in rows for value in row.values())
    said = (tmp_path / "run" / "warnings.jsonl").read_text()
    assert "counts as the nearest reward" in said and f"{value:g}" in said


def test_what_no_rule_can_tell_from_a_reward_ends_in_words(tmp_path: Path, models: dict[str, str]) -> None:
    """A fifth of the batch: that may be a distribution. Then GI-PPO is in effect PPO, and somebody is told."""
    (stds,) = run_ranks(_outliers, 1, tmp_path, models, 1e6, 4)
    assert stds[-1] > 1e3 * stds[1]
    said = (tmp_path / "run" / "warnings.jsonl").read_text()
    assert "in effect off: R_var, the variance between the groups, has been under a thousandth" in said
