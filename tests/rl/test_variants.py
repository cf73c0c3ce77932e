"""Baselines, controls and oracles in the one loop: what each preset trains on."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gipo_mc.config import AlgorithmConfig, as_yaml, load_config, validate
from gipo_mc.errors import ConfigError
from gipo_mc.presets import PRESETS
from gipo_mc.rl import gi_ppo
from gipo_mc.rl.experience import Experience
from gipo_mc.rl.setup import describe_algorithm, describe_groups, restore, set_up
from gipo_mc.run.session import open_session
from tests.ranks import run_ranks
from tests.runs import rl_config, save_models
from tests.source_rules import ROOT

#: Both domains are in every batch with this seed.
FAST = ["run.seed=8", "eval.prompts=0", "rollout.batch_size=12", "algorithm.mini_batch_size=6", "algorithm.epochs=1"]
FAST += ["parallel.micro_batch_size=12"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _train(rank: int, folder: Path, models: dict[str, str], runs: dict[str, list[str]], flip: str = "") -> Any:
    """{run: (metrics and experience of each of two iterations, final policy, what the header says)}. flip: the run
    whose groups change names."""
    shape, kept = gi_ppo.shape, []

    def keep(*args: Any) -> Any:
        experience, state = shape(*args)
        kept.append(experience)
        return experience, state

    gi_ppo.shape = keep  # this process is the test's own
    results = {}
    for name, overrides in runs.items():
        kept.clear()
        config = rl_config(folder, models, *FAST, f"run.name={name}", *overrides)
        with open_session(config, "test") as session:
            setup = set_up(session)
            source = setup.group_source
            said = (describe_algorithm(config), describe_groups(config, source))
            if name == flip:
                setup = dataclasses.replace(setup, group_source=lambda *args, s=source: s(*args).flip(1))  # type: ignore[arg-type]
            state, metrics = restore(session, setup), []
            for step in range(2):
                state, found = gi_ppo.iterate(session, setup, state, step)
                metrics.append(found)
            policy = {n: p.detach().clone() for n, p in setup.models.policy.model.named_parameters()}
            results[name] = (metrics, list(kept), policy, said, sorted(setup.engines))
    return results


@pytest.fixture(scope="module")
def presets(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> dict[str, Any]:
    runs = {name: [f"algorithm.preset={name}"] for name in PRESETS}
    runs["flipped"] = ["algorithm.name=oracle_gi_ppo"]
    runs["grpo"] = ["algorithm.name=rloo", "algorithm.advantage=grpo", "algorithm.whiten_advantages=false"]
    runs["loss"] = [
        "algorithm.name=ppo",
        "algorithm.kl_in=loss",
        "algorithm.kl_estimator=k2",
        "algorithm.kl_target=0.1",
    ]
    runs["own"] = [
        "algorithm.group_trunk=own",
        "algorithm.groups=3",
        "algorithm.classifier_every=2",
        "algorithm.critic_epochs=2",
    ]
    return run_ranks(_train, 1, tmp_path_factory.mktemp("presets"), models, runs, "flipped")[0]  # type: ignore[no-any-return]


def test_every_preset_trains_with_finite_metrics(presets: dict[str, Any]) -> None:
    for name in PRESETS:
        metrics, _, policy, _, _ = presets[name]
        assert all(math.isfinite(value) for row in metrics for value in row.values()), name
        assert all(row["policy/grad_norm"] > 0 and row["policy/skipped"] == 0 for row in metrics), name
        assert {"worst/domain_reward", "objective/domain/easy", "kl/domain/hard"} <= metrics[0].keys(), name
        for other in set(PRESETS) - {name}:
            same = all(torch.equal(policy[key], presets[other][2][key]) for key in policy)
            assert not same, f"{name} and {other} are the same"


def test_groups_are_there_where_the_preset_has_them(presets: dict[str, Any]) -> None:
    for name, preset in PRESETS.items():
        metrics, experiences, _, said, engines = presets[name]
        grouped = preset.algorithm["groups_from"] != "none"
        assert ("group/0/mass" in metrics[0]) == ("group/variance" in metrics[0]) == grouped, name
        assert experiences[0].inputs.group_probs_BM.shape == (12, 2 if grouped else 1), name
        assert ("group/stability" in metrics[0]) == (preset.algorithm["groups_from"] == "classifier"), name
        assert ("group/oracle" in metrics[0]) == ("ORACLE" in said[1]) == name.startswith("oracle_"), name
        assert said[0].startswith(preset.title)
        assert ("critic" in engines) == (preset.algorithm["advantage"] == "gae"), name
        assert ("policy/group_variance" in metrics[1]) == (preset.algorithm["penalty"] == "variance"), name


def test_the_oracle_is_told_the_domains(presets: dict[str, Any]) -> None:
    metrics, experiences, _, said, _ = presets["oracle_gi_ppo"]
    first: Experience = experiences[0]
    easy_B = torch.tensor([domain == "easy" for domain in first.rollout.domain_B])
    assert torch.equal(first.inputs.group_probs_BM, torch.stack([easy_B, ~easy_B], 1).float())
    assert metrics[0]["group/domain_auc"] == 1.0 and "easy, hard" in said[1]
    best = int(metrics[0]["group/best"])
    assert torch.equal(first.inputs.kl_weight_B, 0.1 * first.inputs.group_probs_BM[:, best])


def test_names_of_groups_mean_nothing(presets: dict[str, Any]) -> None:
    metrics, _, policy, _, _ = presets["oracle_gi_ppo"]
    flipped_metrics, _, flipped, _, _ = presets["flipped"]
    assert metrics[1]["group/0/mass"] == flipped_metrics[1]["group/1/mass"] != metrics[1]["group/1/mass"]
    for name, tensor in policy.items():
        torch.testing.assert_close(tensor, flipped[name], rtol=1e-4, atol=1e-6)


def test_the_threshold_knows_the_reward_alone(presets: dict[str, Any]) -> None:
    first: Experience = presets["threshold_kl"][1][0]
    above_B = first.outputs.reward_B > first.outputs.reward_B.mean()
    assert torch.equal(first.inputs.group_probs_BM[:, 0].bool(), above_B)
    assert torch.equal(first.inputs.kl_weight_B, 0.1 * above_B), "the group above the mean earns more"


def test_kl_weights_of_the_presets(presets: dict[str, Any]) -> None:
    weights = {name: presets[name][1][0].inputs.kl_weight_B for name in PRESETS}
    for name in ("ppo", "variance_penalty", "oracle_group_dro", "rloo", "paper"):  # no best R_g yet for the paper
        assert torch.equal(weights[name], torch.full((12,), 0.1)), name
    assert torch.equal(weights["ppo_no_kl"], torch.zeros(12))
    adaptive, even = weights["adaptive_kl"], weights["mean_kl"]
    assert adaptive.std() > 0 and torch.equal(even, even[:1].expand(12))
    torch.testing.assert_close(even.mean(), adaptive.mean())
    assert presets["paper"][1][1].inputs.kl_weight_B.std() > 0


def test_group_dro_weighs_the_worse_domain_up(presets: dict[str, Any]) -> None:
    metrics = presets["oracle_group_dro"][0][0]
    worse = min((0, 1), key=lambda g: metrics[f"group/{g}/objective"])
    assert metrics[f"group/{worse}/weight"] > 0.5 > metrics[f"group/{1 - worse}/weight"]
    assert metrics["group/0/weight"] + metrics["group/1/weight"] == pytest.approx(1.0)
    dro, ppo = presets["oracle_group_dro"][1][0], presets["ppo"][1][0]
    ratio_B = (dro.inputs.advantage_BT[:, 0] / ppo.inputs.advantage_BT[:, 0]).double()
    for group in (0, 1):
        member_B = dro.inputs.group_probs_BM[:, group] == 1
        expected = metrics[f"group/{group}/weight"] / metrics[f"group/{group}/mass"]
        torch.testing.assert_close(ratio_B[member_B], torch.full((int(member_B.sum()),), expected).double())


def test_without_a_critic_samples_are_compared(presets: dict[str, Any]) -> None:
    metrics, experiences, _, _, engines = presets["grpo"]
    assert engines == ["policy"] and not any(name.startswith(("critic/", "value/")) for name in metrics[0])
    second: Experience = experiences[1]
    prompts = second.rollout.prompt_index_B.reshape(3, 4)
    assert (prompts == prompts[:, :1]).all() and len(set(prompts[:, 0].tolist())) == 3
    tokens = second.rollout.sequences.tokens_BL
    assert len({tuple(row.tolist()) for row in tokens}) > 3, "the samples of a prompt are not copies"
    paid = (second.outputs.reward_B - second.inputs.kl_weight_B * second.kl_B).reshape(3, 4)
    expected = ((paid - paid.mean(1, keepdim=True)) / (paid.std(1, keepdim=True) + 1e-6)).flatten()
    torch.testing.assert_close(second.inputs.advantage_BT[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert presets["gi_rloo"][4] == ["classifier", "policy"]


def test_the_classifier_may_stand_alone_and_rest(presets: dict[str, Any]) -> None:
    metrics, _, _, _, engines = presets["own"]
    assert engines == ["classifier", "critic", "policy"]
    assert metrics[0]["classifier/grad_norm"] > 0 and metrics[0]["critic/grad_norm"] > 0
    assert "classifier/grad_norm" not in metrics[1] and "group/2/mass" in metrics[1]


def test_the_kl_may_stand_in_the_loss_and_follow_a_target(presets: dict[str, Any]) -> None:
    metrics, experiences, policy, _, _ = presets["loss"]
    plain: Experience = presets["ppo"][1][0]
    assert torch.equal(experiences[0].inputs.kl_weight_B, plain.inputs.kl_weight_B)
    assert metrics[0]["kl/coef"] == pytest.approx(0.098)
    assert metrics[1]["kl/coef"] == pytest.approx(0.098 * (1 + 0.1 * min(0.2, metrics[1]["kl/mean"] / 0.1 - 1)))
    free = presets["ppo_no_kl"]
    assert torch.equal(experiences[0].inputs.advantage_BT, free[1][0].inputs.advantage_BT), "no KL in the reward"
    assert not all(torch.equal(policy[name], free[2][name]) for name in policy)


# ------------------------------------------------------------------------------------------------------ configuration
def test_gi_ppo_is_what_the_defaults_are() -> None:
    assert validate({"algorithm": {"name": "gi_ppo"}}) == validate({}) == load_config(None, [])


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_name_sets_its_keys_and_keys_beside_it_win(tmp_path: Path, name: str) -> None:
    config = load_config(None, [f"algorithm.preset={name}"])
    assert config.algorithm.name == name == load_config(None, [f"algorithm.name={name}"]).algorithm.name
    for key, value in PRESETS[name].algorithm.items():
        assert getattr(config.algorithm, key) == value
    assert load_config(None, [f"algorithm.name={name}", "algorithm.beta_policy=7"]).algorithm.beta_policy == 7
    # The resolved configuration of a run is that run again, and any other algorithm by its name.
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert load_config(str(tmp_path / "config.yaml"), []) == config
    other = load_config(str(tmp_path / "config.yaml"), ["algorithm.name=oracle_group_dro"])
    assert other.algorithm == load_config(None, ["algorithm.name=oracle_group_dro"]).algorithm


def test_a_name_in_a_file_leaves_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("algorithm: {beta_ramp: 7, penalty: none, groups: 4}")
    config = load_config(str(tmp_path / "a.yaml"), ["algorithm.name=oracle_group_dro"]).algorithm
    assert (config.penalty, config.beta_ramp, config.groups) == ("group_dro", 7, 4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.name=gippo"], ["'gippo' is no known algorithm", "gi_ppo, paper, ppo"]),
        (["algorithm.name=ppo", "algorithm.preset=paper"], ["two names for the same choice"]),
        (["algorithm.name=rloo", "rollout.samples_per_prompt=1"], ["there is one", "rollout.samples_per_prompt=4"]),
        (["rollout.samples_per_prompt=3"], ["rollout.batch_size=64", "set it to 66"]),
        (["algorithm.advantage=rloo", "rollout.samples_per_prompt=2"], ["set algorithm.group_trunk=own"]),
        (["algorithm.name=threshold_kl", "algorithm.groups=3"], ["two groups", "set algorithm.groups=2"]),
        (["algorithm.name=rloo", "algorithm.critic_warmup=3"], ["set algorithm.critic_warmup=0"]),
        (["algorithm.kl_in=loss"], ["gradient of mean 0", "set algorithm.kl_estimator=k2"]),
        (["algorithm.kl_target=6", "algorithm.kl_coef=0"], ["moves eta by shares of itself", "a kl_coef above 0"]),
        (["algorithm.kl_target=6", "algorithm.name=ppo_no_kl"], ["kl_penalty=none", "or kl_target=0"]),
    ],
)
def test_combinations_without_a_meaning_name_the_fix(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides)
    for word in words:
        assert word in str(error.value)


def test_every_choice_is_documented() -> None:
    text = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        assert f"`{name}`" in readme and f"| `{name}` |" in text, name
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        for key, value in preset.algorithm.items():
            if value != AlgorithmConfig.model_fields[key].default:
                shown = str(value).lower() if isinstance(value, bool | str) else f"{value:g}"
                assert f"{key}={shown}" in row, (name, key)
    for key in AlgorithmConfig.model_fields:
        assert f"`{key}`" in text or f"`algorithm.{key}`" in text, key


def _domains(rank: int, folder: Path, models: dict[str, str]) -> str:
    config = rl_config(folder, models, "algorithm.name=oracle_gi_ppo", "algorithm.groups=3")
    try:
        with open_session(config, "test") as session:
            set_up(session)
    except ConfigError as error:
        return str(error)
    return ""


def test_an_oracle_needs_as_many_groups_as_domains(tmp_path: Path, models: dict[str, str]) -> None:
    (said,) = run_ranks(_domains, 1, tmp_path, models)
    assert "2 domains of the prompts (easy, hard), not algorithm.groups=3: set algorithm.groups=2" in said
