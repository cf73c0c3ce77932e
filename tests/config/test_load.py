"""The configuration: layers over each other, references between keys, and problems in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.config import Config, as_yaml, load_config, names_nothing, validate
from gipo_mc.config.explain.origins import shown_values
from gipo_mc.config.load import saved_values
from gipo_mc.errors import ConfigError
from gipo_mc.run.command import run_command
from gipo_mc.tools import builtin

BASES = {name: getattr(builtin, f"{name}_base") for name in ("sft", "reward", "dpo", "gi_ppo")}


@pytest.mark.parametrize("name", BASES)
def test_the_built_in_task_loads_without_a_word_from_the_user(name: str) -> None:
    config = load_config(None, [], BASES[name]())
    assert config.run.dir == "runs" and config.model.policy.startswith("runs/builtin_")


@pytest.mark.parametrize("name", BASES)
def test_the_built_in_task_follows_the_run_folder_that_is_given(name: str) -> None:
    assert load_config(None, ["run.dir=/elsewhere"], BASES[name]()).model.policy.startswith("/elsewhere/builtin_")


def test_the_built_in_reward_of_rl_is_the_proxy_and_ppo_is_beside_it() -> None:
    """Where docs/results/builtin.md shows a gain, at the settings that its study chose."""
    record = json.loads((Path(__file__).parents[2] / "benchmarks/results/group_robustness.json").read_text())
    gi_ppo, ppo = load_config(None, [], builtin.gi_ppo_base()), load_config(None, builtin.PPO, builtin.gi_ppo_base())
    assert gi_ppo.model.reward == ppo.model.reward == "python:gipo_mc.data.synthetic:proxy"
    own = gi_ppo.algorithm
    assert [own.beta_policy, own.reweight_cap, gi_ppo.policy.lr] == _numbers(record["chosen"]["gi_ppo_beta"])
    assert [ppo.algorithm.kl_coef, ppo.policy.lr] == _numbers(record["chosen"]["ppo"])
    assert ppo.algorithm.name == "ppo" and own.kl_coef == ppo.algorithm.kl_coef
    assert (gi_ppo.run.iterations, gi_ppo.rollout.batch_size) == (record["size"]["iterations"], record["size"]["batch"])
    sft = load_config(None, [], builtin.sft_base())
    assert (sft.run.iterations, sft.data.max_rows) == (record["size"]["sft"], record["size"]["demonstrations"])


def _numbers(chosen: str) -> list[float]:
    return [float(number) for number in chosen.split()]


def test_a_file_may_refer_to_a_key_that_nobody_gave(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("run: {name: 'seed-${run.seed}'}\ncritic: {lr: '${policy.lr}'}\n")
    config = load_config(str(path), ["policy.lr=0.5"])
    assert config.run.name == f"seed-{Config().run.seed}" and config.critic.lr == 0.5


def test_a_reference_to_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("run: {name: '${run.nmae}'}\n")
    with pytest.raises(ConfigError, match=r"run\.nmae"):
        load_config(str(path), [])


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"run": 3}, "run=3"),
        ({"run": None}, "run=None"),
        ({"data": {"prompts": {"a": 1}}}, "data.prompts"),
        ({"policy": [1]}, "policy="),
    ],
)
def test_a_section_of_the_wrong_kind_is_named(layer: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, [], layer)


def test_a_list_and_a_section_for_the_same_key_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("data: {prompts: [a.jsonl]}\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(str(path), ["data.prompts.a=1"])


def test_options_are_checked_together_with_the_built_in_task_under_them() -> None:
    """128 responses a mini-batch are more than the schema's 64 an iteration, and as many as the built-in task's."""
    seen: list[Config] = []
    task = builtin.BuiltinTask(builtin.gi_ppo_base, lambda config: None)
    words = ["algorithm.mini_batch_size=128", "policy.min_lr=5e-5"]
    assert run_command("test", seen.append, argv=words, builtin=task) == 0
    assert seen[0].rollout.batch_size == seen[0].algorithm.mini_batch_size == 128


@pytest.mark.parametrize(
    ("words", "nothing"),
    [
        ([], True),
        (["policy.lr=1", "data.max_rows=7", "data.evaluation=[x.jsonl]"], True),
        (["model.reward=mine"], False),
        (["model.tokenizer=mine"], False),
        (["data.preferences=[x.jsonl]"], False),
    ],
)
def test_the_built_in_task_is_there_for_who_names_no_model_and_no_data(words: list[str], nothing: bool) -> None:
    assert names_nothing(None, words) == nothing


def test_a_model_that_is_named_as_nothing_is_no_model() -> None:
    """`model.policy=` on a command line is null in YAML; the trainers then say that it is empty."""
    assert load_config(None, ["model.policy=", "model.reward="]).model.policy == ""
    assert names_nothing(None, ["model.policy="])


# ------------------------------------------------------------------------- what YAML makes of what somebody wrote
@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", "'1e-5'"])
def test_a_small_number_is_a_number_however_it_is_written(tmp_path: Path, text: str) -> None:
    """PyYAML reads 1e-5 as a string."""
    file = tmp_path / "c.yaml"
    file.write_text(f"policy:\n  lr: {text}\n")
    assert load_config(str(file), []).policy.lr == load_config(None, [f"policy.lr={text}"]).policy.lr == 1e-5


@pytest.mark.parametrize(
    ("override", "read_as"), [("run.seed=010", 8), ("run.iterations=1:30", 90), ("run.name=007", 7)]
)
def test_octal_and_sexagesimal_numbers_are_refused(tmp_path: Path, override: str, read_as: int) -> None:
    with pytest.raises(ConfigError, match=rf"{override}, line 1: YAML reads .* as the number {read_as}\."):
        load_config(None, [override])
    file = tmp_path / "c.yaml"
    file.write_text("data: {max_rows: 3}\n" + override.replace(".", ": {").replace("=", ": ") + "}\n")
    with pytest.raises(ConfigError, match=rf"c\.yaml, line 2: YAML reads .* as the number {read_as}\."):
        load_config(str(file), [])


@pytest.mark.parametrize("override", ["run.iterations=true", "parallel.tensor=on", "rollout.temperature=yes"])
def test_yes_is_no_number(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"{override.partition('=')[0]}=True: it must be a number"):
        load_config(None, [override])


@pytest.mark.parametrize("text", [r"\n", r"'\n\nHuman:'", r"a\tb"])
def test_a_line_break_that_is_none_is_refused(text: str) -> None:
    """Nothing that a model writes would match it, and every training row would hold it."""
    for override in (f"rollout.stop=[{text}]", f"data.response_separator={text}"):
        with pytest.raises(ConfigError, match="a backslash and a letter, not a line break"):
            load_config(None, [override])
    assert load_config(None, [r'rollout.stop=["\n\nHuman:"]']).rollout.stop == ["\n\nHuman:"]


def test_a_key_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text in ("policy:\n  lr: 1e-5\n  lr: 2e-5\n", "policy: {lr: 1e-5}\nrun: {seed: 2}\npolicy: {beta2: 0.9}\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="duplicate key"):
            load_config(str(file), [])


@pytest.mark.parametrize("name", ["1e3", "007", "2024-01-02", "on", "null", "0x10", "12:30:15", "~", ".5", "# x"])
def test_a_saved_configuration_is_the_one_that_ran(tmp_path: Path, name: str) -> None:
    config = validate({"run": {"name": name}, "rollout": {"stop": [name, "\n", " ", "a: b"]}})
    (tmp_path / "c.yaml").write_text(as_yaml(config), encoding="utf-8")
    assert load_config(str(tmp_path / "c.yaml"), []) == config


@pytest.mark.parametrize("value", ["a\x1b[31m", "[1", "{a: b"])
def test_an_option_that_is_no_yaml_is_named_in_one_line(value: str) -> None:
    with pytest.raises(ConfigError) as found:
        load_config(None, [f"run.name={value}"])
    (said,) = str(found.value).splitlines()[1:]
    assert said.startswith("  - The value of run.name is not valid YAML: ") and "<unicode" not in said


def test_a_line_that_is_no_yaml_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("run:\n  seed: 1\n  l")
    for read in (lambda: load_config(str(path), []), lambda: saved_values(path)):
        with pytest.raises(ConfigError, match=r"could not find expected ':' \(line 3, column 4\)"):
            read()


def test_a_mapping_is_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the file as a whole or by each of its names; written as given, with references to the environment."""
    monkeypatch.setenv("HH_COLUMN", "question_of_the_day")
    path = tmp_path / "own.yaml"
    path.write_text("data: {columns: {prompt: '${oc.env:HH_COLUMN}', chosen: better}}\n")
    config = load_config(str(path), ["data.columns.rejected=worse", "data.columns.chosen=best"])
    assert config.data.columns == {"prompt": "question_of_the_day", "chosen": "best", "rejected": "worse"}
    for override, columns in (("{prompt: q}", {"prompt": "q"}), ("{}", {}), ("", {})):
        assert load_config(str(path), [f"data.columns={override}"]).data.columns == columns
        shown = {v.key: v.origin for v in shown_values(str(path), [f"data.columns={override}"])}
        assert shown["data.columns"] == "command line"
    columns = load_config(str(path), ["data.columns={prompt: q}", "data.columns.chosen=c"]).data.columns
    assert columns == {"prompt": "q", "chosen": "c"}
    based = {"data": {"columns": {"rejected": "worse"}}}
    assert load_config(str(path), [], based).data.columns == {"prompt": "question_of_the_day", "chosen": "better"}
    assert load_config(None, ["data.columns.prompt=q"], based).data.columns == {"prompt": "q", "rejected": "worse"}
    saved = tmp_path / "saved.yaml"
    saved.write_text(as_yaml(config))
    assert "question_of_the_day" not in saved.read_text() and load_config(str(saved), []).data == config.data
    assert load_config(None, ["data.columns={prompt: q}"]).data.columns == {"prompt": "q"}
    assert load_config(None, ["data.columns="]).data.columns == {}
    with pytest.raises(ConfigError, match=r"data\.columns has promt, which is no field of a row: .* being prompt,"):
        load_config(None, ["data.columns={promt: q}"])
