"""Everything that is wrong is said at once, with the nearest key or value that is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gipo_mc.config import load_config, options
from gipo_mc.config.explain.problems import _ALIASES, _MISSING, nearest_key
from gipo_mc.config.load import examine
from gipo_mc.errors import ConfigError


def said(*overrides: str, path: str | None = None) -> str:
    with pytest.raises(ConfigError) as found:
        load_config(path, list(overrides))
    return str(found.value)


def test_problems_of_every_kind_are_in_one_error() -> None:
    """Words that are no override, a value in a section's place, a misread number, types, unknown keys, combinations."""
    text = said(
        *("x", "run=4", "run.seed=010", "rollout.batch_size=-1", "polcy.lr=1", "parallel.virtual_pipeline=2"),
        *("dpo.loss=ipo", "dpo.label_smoothing=0.1", "run.name=[1"),
    )
    for part in (
        *("Not understood: x.", "run is a section", "YAML reads 010", "rollout.batch_size=-1: ", "polcy: there is no"),
        *("parallel.virtual_pipeline=2 cuts", "dpo.label_smoothing=0.1 is", "The value of run.name is not valid YAML"),
    ):
        assert text.count(f"  - {part}") + text.count(f", line 1: {part}") == 1, (part, text)


def test_a_combination_with_a_key_that_is_wrong_is_not_complained_of() -> None:
    """Its default stands for it then, and nobody wrote that."""
    text = said("rollout.batch_size=x", "rollout.samples_per_prompt=7", "algorithm.mini_batch_size=100")
    assert text.count("  - ") == 1 and "rollout.batch_size='x'" in text


def test_every_reference_to_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("run: {name: '${run.nmae}', dir: '${oc.env:NOT_SET_ANYWHERE}'}\ncritic: {lr: '${policy.lr}'}\n")
    text = said(path=str(path))
    assert "  - run.name: " in text and "NOT_SET_ANYWHERE" in text and "critic" not in text


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("run.iteratons", "did you mean run.iterations?"),
        ("polcy", "did you mean policy?"),
        ("lr", "did you mean policy.lr or critic.lr?"),
        ("rollout.micro_batch_size", "it is rollout.slots now"),
        ("optimizer.lr", "did you mean policy.lr or critic.lr?"),
        ("policy.learning_rate", "did you mean policy.lr?"),
        ("learning_rate", "did you mean policy.lr or critic.lr?"),
        ("train.per_device_train_batch_size", "did you mean parallel.micro_batch_size?"),
        ("batch_size", "did you mean train.batch_size or rollout.batch_size?"),
        ("train.epochs", "did you mean run.iterations?"),
        ("algorithm.beta", "did you mean algorithm.kl_coef?"),
        ("data.max_length", "did you mean data.sequence_length?"),
        ("parralel.tensor", "did you mean parallel.tensor?"),
        ("POLICY", "did you mean policy?"),
        ("policy.LR", "did you mean policy.lr?"),
        ("parallel.context", "; there is no context parallelism: parallel.sequence=true shares"),
        ("cp_size", "; there is no context parallelism"),
        ("parallel.expert_model_parallel_size", "; models are dense"),
        ("policy.lora_rank", "no adapters"),
        ("parallel.sequence_parallel", "did you mean parallel.sequence?"),
        ("dpo.zzz", "known here: loss, beta, "),
    ],
)
def test_the_nearest_key(key: str, nearest: str) -> None:
    assert nearest in nearest_key(key)


def test_names_of_other_libraries_stand_for_keys_that_there_are() -> None:
    for alias, keys in _ALIASES.items():
        assert set(keys) <= set(options()), alias
    last = {key.rpartition(".")[2] for key in options()}
    assert not set(_MISSING) & (last | set(_ALIASES)), "what there is"
    named = re.findall(r"\b[a-z]+\.[a-z_]+\b", " ".join(_MISSING.values()))
    assert named and set(named) <= set(options())


@pytest.mark.parametrize("key", ["data.evaluation", "data.prompts", "rollout.stop", "run.trackers", "reward.weights"])
def test_nothing_is_an_empty_list(key: str) -> None:
    config = load_config(None, [f"{key}="])
    section, _, name = key.partition(".")
    assert getattr(getattr(config, section), name) == []


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("algorithm.name=gi_pp", "gi_ppo"),
        ("dpo.groups_from=domian", "domain"),
        ("run.trackers=[wandbb]", "wandb"),
        ("device=gpu", "cuda"),
        ("device=zzz", ""),
        ("algorithm.name=GI_PPO", "gi_ppo"),
        ("algorithm.advantage=gea", "gae"),
        ("dpo.loss=Ipo", "ipo"),
    ],
)
def test_the_nearest_value(override: str, nearest: str) -> None:
    text = said(override)
    assert text.endswith(f"; did you mean {nearest}?") if nearest else "did you mean" not in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.batch_size=thirty", "rollout.batch_size='thirty': it must be a whole number"),
        ("rollout.batch_size=1.5", "rollout.batch_size=1.5: it must be a whole number"),
        ("policy.lr=fast", "policy.lr='fast': it must be a number"),
        ("run.resume=perhaps", "run.resume='perhaps': it must be true or false"),
        ("data.prompts=5", "data.prompts=5: it must be a list, such as [a, b]"),
        ("data.columns=5", "data.columns=5: it must be a mapping, such as {key: value}"),
        ("rollout.batch_size=0", "rollout.batch_size=0: it must be at least 1"),
        ("dtype=float8", "dtype='float8': it must be 'auto', "),
    ],
)
def test_a_value_of_another_kind_is_refused_in_our_words(override: str, words: str) -> None:
    text = said(override)
    assert words in text and "Input should" not in text


def test_what_is_right_is_there_beside_the_problems() -> None:
    config, problems = examine(None, ["run.seed=x", "run.iterations=7"])
    assert config is not None and (config.run.iterations, config.run.seed) == (7, 1) and len(problems) == 1
