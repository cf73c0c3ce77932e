"""Where each value comes from, and how configurations differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_mc.config import as_yaml, load_config, options
from gipo_mc.config.explain.origins import differences, shown_values
from gipo_mc.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own.yaml"
    path.write_text("algorithm: {name: rloo, kl_coef: 0.2}\npolicy: {lr: 1.0e-4}\ncritic: {lr: '${policy.lr}'}\n")
    return str(path)


def test_every_value_has_its_origin(file: str) -> None:
    found = {one.key: one for one in shown_values(file, ["policy.lr=0.5"], {"run": {"seed": 3}})}
    assert list(found) == list(options())
    origins = {key: found[key].origin for key in ("run.seed", "algorithm.kl_coef", "policy.lr", "run.name")}
    assert origins == {
        "run.seed": "built-in task",
        "algorithm.kl_coef": file,
        "policy.lr": "command line",
        "run.name": "default",
    }
    assert (found["critic.lr"].value, found["critic.lr"].origin) == (0.5, file)
    for key in ("algorithm.advantage", "rollout.samples_per_prompt"):
        assert found[key].origin == "algorithm.name=rloo" and found[key].value != found[key].default


def test_the_preset_that_is_named_last_counts(file: str) -> None:
    found = {one.key: one.origin for one in shown_values(file, ["algorithm.name=ppo"])}
    assert found["algorithm.advantage"] == "algorithm.name=ppo" and found["algorithm.name"] == "command line"
    assert found["rollout.samples_per_prompt"] == "default"


def test_what_comes_from_the_environment_is_shown_as_a_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    path = tmp_path / "own.yaml"
    path.write_text("model: {policy: 'hub/${oc.env:MY_TOKEN}'}\n")
    found = {one.key: one.value for one in shown_values(str(path), [])}
    assert found["model.policy"] == "hub/${oc.env:MY_TOKEN}"


def test_differences_of_files_and_run_folders(tmp_path: Path, file: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(as_yaml(load_config(file, ["policy.lr=0.5", "train.batch_size=5"])))
    found = {one.key: (one.before, one.after, one.rule) for one in differences(str(run), file, "train_gi_ppo")}
    assert found == {
        "policy.lr": (0.5, 1e-4, "changeable"),
        "critic.lr": (0.5, 1e-4, "changeable"),
        "train.batch_size": (5, 32, "unread"),
    }
    assert differences(file, file) == []
    (rule,) = {one.rule for one in differences(str(run), file) if one.key == "train.batch_size"}
    assert rule == "fixed"


def test_a_run_of_another_version_is_compared_in_what_it_has(tmp_path: Path, file: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("run: {seed: 1, old_key: 2}\n")
    found = {one.key: one.rule for one in differences(str(tmp_path / "run"), file)}
    assert found["run.old_key"] == "unknown" and "run.seed" not in found and found["policy.lr"] == "changeable"


def test_a_folder_without_a_configuration_is_an_error(tmp_path: Path, file: str) -> None:
    with pytest.raises(ConfigError, match=r"without a config\.yaml"):
        differences(str(tmp_path), file)
