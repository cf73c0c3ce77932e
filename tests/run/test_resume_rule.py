"""What may change when a run continues, and what refuses to: every option, the data, the frozen models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from gipo_mc.config import UNREAD, Config, load_config, options, resume_rule, values
from gipo_mc.errors import ConfigError, GipoError
from gipo_mc.models.families import hf_config
from gipo_mc.models.shape import ModelShape
from gipo_mc.parallel import runtime
from gipo_mc.rl import gi_ppo
from gipo_mc.run import checkpoint
from gipo_mc.run.model_sources import ModelSource
from gipo_mc.run.resume import Fixed, check_shape, fixed_settings, names_of, shape_hash
from gipo_mc.supervised import dpo, sft
from tests.ranks import run_ranks
from tests.runs import read_metrics, save_models

COMMANDS = tuple(UNREAD)
#: The whole list, so that a field that comes to be marked is seen here.
CHANGEABLE = {
    "run": ("dir", "name", "iterations", "resume", "grace_seconds", "trackers"),
    "tracking": ("project", "name", "group", "tags", "entity", "wandb_mode", "mlflow_uri"),
    "parallel": (
        "tensor",
        "pipeline",
        "virtual_pipeline",
        "frozen_tensor",
        "frozen_pipeline",
        "sequence",
        "micro_batch_size",
        "tokens_per_micro_batch",
        "logit_rows",
        "timeout_minutes",
        "silence_seconds",
        "overlap",
        "shared_memory",
    ),
    "memory": ("recompute", "offload"),
    "model": ("policy", "critic"),
    "data": ("evaluation",),
    "rollout": ("engine", "slots", "prefill_tokens", "kv_cache_gib", "refusals"),
    "algorithm": ("outlier", "invalid_patience"),
    "policy": ("lr", "min_lr", "schedule", "warmup", "clip_grad"),
    "critic": ("lr", "min_lr", "schedule", "warmup", "clip_grad"),
    "reward": ("names", "on_error", "max_skipped", "key_variable", "timeout_seconds", "retries", "workers", "batch"),
    "checkpoint": ("every", "keep", "async", "verify"),
    "eval": ("every", "prompts", "reward", "pairs"),
}
CONTENT = {
    "model": ("reference", "reward", "tokenizer"),
    "data": ("prompts", "preferences", "demonstrations", "domains", "columns"),
    "dpo": ("group_model",),
    "reward": ("also", "models"),
}


#: Other values of keys whose default, auto, stands for one of the others.
SPECIAL = {"dtype": "bfloat16", "parallel.distributed_optimizer": "on", "parallel.overlap": "on"}


def _keys(sections: dict[str, tuple[str, ...]]) -> set[str]:
    return {f"{section}.{name}" for section, names in sections.items() for name in names}


# ------------------------------------------------------------------------------------------------------- every option
def _changed(config: Config, key: str) -> Config:
    """The configuration with another value for one key; whether the whole is allowed does not matter here."""
    old, kind = values(config)[key], options()[key].annotation
    if key in SPECIAL:
        new: Any = SPECIAL[key]
    elif isinstance(old, bool):
        new = not old
    elif choices := [choice for choice in get_args(kind) if isinstance(choice, str)]:
        new = next(choice for choice in reversed(choices) if choice != old)
    elif isinstance(old, list):
        new = [*old, "other"]
    elif isinstance(old, dict):
        new = {**old, "prompt": "other"}
    else:
        new = old + ("other" if isinstance(old, str) else 1)
    section, _, name = key.rpartition(".")
    if not section:
        return config.model_copy(update={name: new})
    return config.model_copy(update={section: getattr(config, section).model_copy(update={name: new})})


def _fixed(config: Config, command: str) -> Fixed:
    dtype = runtime.resolve_dtype(config.dtype, torch.device("cpu"))
    shards = config.parallel.distributed_optimizer == "on"
    return Fixed(fixed_settings(config, command, dtype, distributed_optimizer=shards))


def _stored(fixed: Fixed) -> dict[str, Any]:
    return json.loads(json.dumps({"settings": fixed.settings, "frozen": fixed.frozen, "data": fixed.data}))  # type: ignore[no-any-return]


@pytest.mark.parametrize("key", options())
def test_an_option_is_fixed_unless_its_field_says_that_it_may_change(key: str) -> None:
    before = Config()
    after = _changed(before, key)
    assert values(before)[key] != values(after)[key]
    refused = {c: _fixed(after, c).changes(_stored(_fixed(before, c))) for c in COMMANDS}
    if key in _keys(CHANGEABLE) | {"device"} | _keys(CONTENT):
        assert resume_rule(key) == ("content" if key in _keys(CONTENT) else "changeable")
        # One reward more has a weight, which is fixed.
        weighed = {"train_gi_ppo": ["reward.weights was [1.0], now [1.0, 1.0]"]} if key == "reward.also" else {}
        assert {command: lines for command, lines in refused.items() if lines} == weighed
        return
    assert resume_rule(key) == "fixed"
    reads = {c for c in COMMANDS if key not in UNREAD[c] and key.split(".")[0] not in UNREAD[c]}
    assert reads, f"no command reads {key}"
    for command, lines in refused.items():
        assert len(lines) == (command in reads), lines
        assert all(line.startswith(f"{key} was ") and ", now " in line for line in lines)


def test_what_a_command_does_not_read_names_options_that_exist() -> None:
    sections = {key.split(".")[0] for key in options()}
    assert all(name in sections or name in options() for names in UNREAD.values() for name in names)


def test_auto_is_what_it_stands_for() -> None:
    one, two = Config(), Config(dtype="float32", parallel={"distributed_optimizer": "off"})  # type: ignore[arg-type]
    assert _fixed(one, "train_sft").changes(_stored(_fixed(two, "train_sft"))) == []


def test_every_change_is_named_with_both_values_and_the_way_out() -> None:
    before, after = Config(), Config(run={"seed": 2}, algorithm={"kl_coef": 0.5})  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as error:
        _fixed(after, "train_gi_ppo").check(Path("runs/x"), _stored(_fixed(before, "train_gi_ppo")))
    text = str(error.value)
    assert "runs/x" in text and "run.seed was 1, now 2" in text and "algorithm.kl_coef was 0.05, now 0.5" in text
    assert "Put it back" in text and error.value.exit_code == 2


def test_a_checkpoint_of_before_is_compared_in_what_it_stored() -> None:
    """Short settings, frozen models by folder and head, no data."""
    old = {
        "settings": {"run.seed": 1, "algorithm.name": "ppo", "algorithm.groups": 1, "dpo.loss": "ipo"},
        "frozen": {"models/sft (lm)": "aaaa", "models/reward (reward)": "bbbb"},
    }
    config = Config(algorithm={"name": "ppo", "groups_from": "none"}, rollout={"temperature": 0.5})  # type: ignore[arg-type]
    fixed = _fixed(config, "train_gi_ppo")
    fixed.frozen |= {"model.reference": "aaaa", "model.reward": "bbbb", "model.tokenizer": "cccc"}
    fixed.data["data.prompts"] = [{"source": "x", "rows": 1, "sha256": "dddd"}]
    assert fixed.changes(old) == []
    fixed.frozen["model.reward"] = "python:a:b"
    fixed.settings["run.seed"] = 2
    assert fixed.changes(old) == [
        "run.seed was 1, now 2",
        "models/reward (reward) was made of bbbb, now of something else",
    ]
    old["settings"]["algorithm.penalty"] = "variance"  # over responses: there was no option for it
    assert "algorithm.penalty_over was 'responses', now 'tokens'" in fixed.changes(old)
    fixed.settings["algorithm.penalty_over"] = "responses"
    assert len(fixed.changes(old)) == 2


def test_an_older_checkpoint_lists_the_reward_of_evaluations_by_its_folder(tmp_path: Path) -> None:
    """It may change, as long as nothing else was made of that folder."""
    old = {"settings": {}, "frozen": {"models/reward (reward)": "bbbb", "models/gold (reward)": "gggg"}}
    fixed = _fixed(Config(), "train_gi_ppo")
    fixed.frozen |= {"model.reward": "bbbb"}
    config = tmp_path / "config.yaml"
    config.write_text("model: {policy: models/p, reward: models/reward}\neval: {reward: models/gold}\n")
    fixed.check(Path("x"), old, names_of(config, Config()))
    with pytest.raises(ConfigError, match="models/gold"):
        fixed.check(Path("x"), old)
    config.write_text("model: {policy: models/p, reward: models/gold}\neval: {reward: models/gold}\n")
    with pytest.raises(ConfigError, match="models/gold"):
        fixed.check(Path("x"), old, names_of(config, Config()))


def test_a_frozen_model_that_differs_anywhere_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older checkpoints have the hash of names, sizes, first and last mebibytes: it is still taken for what it says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model.safetensors"
    data = bytearray(3 << 20)
    found = []
    for position in (None, 0, (3 << 20) // 2):
        if position is not None:
            data[position] ^= 1
        file.write_bytes(bytes(data))
        source = ModelSource("m", "hf", tmp_path)
        found.append((source.fingerprint(), source.earlier_fingerprint()))
    (first, begin, middle) = found
    assert len({new for new, _ in found}) == 3 and first[1] != begin[1] == middle[1]
    for made_of, refused in ((middle[0], False), (middle[1], False), (first[0], True), (first[1], True)):
        fixed = _fixed(Config(), "train_gi_ppo")
        fixed.frozen["model.reward"], fixed.earlier["model.reward"] = middle[0], lambda: middle[1]
        for key in ("model.reward", "models/reward (reward)"):
            assert bool(fixed.changes({"settings": {}, "frozen": {key: made_of}})) == refused
        assert "earlier" not in fixed.stored()


# ------------------------------------------------------------------------------------------------------ as whole runs
def _rows(path: Path, last: str = "c3") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for row in range(6):
            word = last if row == 5 else "c1"
            file.write(json.dumps({"prompt": f"s{row} {word}", "chosen": f"c1 {word}", "rejected": "c5"}) + "\n")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Models, and the same rows in three places, other rows in a fourth."""
    save_models(tmp_path / "models")
    save_models(tmp_path / "others", seed=4)
    for name in ("policy", "reward"):
        shutil.copytree(tmp_path / "models" / name, tmp_path / "moved" / name)
    for name in ("data/rows.jsonl", "moved/rows.jsonl", "data/renamed.jsonl"):
        _rows(tmp_path / name)
    _rows(tmp_path / "edited" / "rows.jsonl", last="c4")
    return tmp_path


_DATA = {"sft": "demonstrations", "dpo": "preferences", "rl": "prompts"}
_TRAIN = {"sft": sft.train, "dpo": dpo.train, "rl": gi_ppo.train}


def _attempts(rank: int, kind: str, folder: Path, attempts: list[list[str]]) -> list[str]:
    """Start the run again and again, each time with other options: "" where it went well, else the error."""
    models = {"policy": str(folder / "models" / "policy"), "reference": str(folder / "others" / "policy")}
    base: dict[str, Any] = {
        "run": {"dir": str(folder), "name": "run", "iterations": 1},
        "device": "cpu",
        "model": models | ({"reward": str(folder / "models" / "reward")} if kind == "rl" else {}),
        "data": {_DATA[kind]: [str(folder / "data" / "rows.jsonl")], "prompt_length": 8, "sequence_length": 24},
        "train": {"batch_size": 4},
        "rollout": {"batch_size": 4, "max_new_tokens": 4},
        "algorithm": {"mini_batch_size": 4},
        "parallel": {"timeout_minutes": 1},
        "policy": {"lr": 1e-3},
        "eval": {"prompts": 0},
    }
    outcomes = []
    for options_of_attempt in attempts:
        try:
            _TRAIN[kind](load_config(None, options_of_attempt, base))
            outcomes.append("")
        except GipoError as error:
            outcomes.append(f"{error.exit_code}: {error}")
    return outcomes


def _continued(kind: str, folder: Path, attempts: list[list[str]]) -> list[str]:
    return run_ranks(_attempts, 1, kind, folder, attempts)[0]  # type: ignore[no-any-return]


FIXED_KEYS = {
    "sft": ["train.batch_size=3", "data.max_rows=5"],
    "dpo": ["dpo.beta=0.2", "policy.beta2=0.9"],
    "rl": ["algorithm.penalty=none", "rollout.temperature=0.5"],
}
#: Of these a run takes the new value; the last is nothing that its command reads.
OTHER_KEYS = {
    "sft": ["policy.lr=0.002", "parallel.micro_batch_size=2", "dpo.beta=0.3"],
    "dpo": ["policy.lr=0.002", "parallel.micro_batch_size=2", "rollout.temperature=0.5"],
    "rl": ["critic.lr=0.002", "eval.reward=python:tests.reward_functions:length", "train.batch_size=5"],
}


@pytest.mark.parametrize("kind", _DATA)
def test_a_run_continues_with_moved_files_and_not_with_other_settings_or_rows(place: Path, kind: str) -> None:
    key, more = f"data.{_DATA[kind]}", "run.iterations=2"
    refused = [
        [more, *FIXED_KEYS[kind]],
        [more, f"{key}=[{place}/edited/rows.jsonl]"],
        [more, f"{key}=[{place}/data/rows.jsonl,{place}/edited/rows.jsonl]"],
    ]
    taken = [
        [more, *OTHER_KEYS[kind]],
        ["run.iterations=3", f"{key}=[{place}/moved/rows.jsonl]"],
        ["run.iterations=4", f"{key}=[{place}/data/renamed.jsonl]"],
    ]
    first, settings, rows, files, *good = _continued(kind, place, [[], *refused, *taken])
    assert first == "" and good == [""] * 3
    for option in FIXED_KEYS[kind]:
        name = option.split("=")[0]
        assert settings.startswith("2: ") and f"  - {name} was " in settings
    assert rows.startswith("2: ") and f"  - {key} was {place}/data/rows.jsonl (6 rows, SHA-256 " in rows
    assert f"now {place}/edited/rows.jsonl (6 rows, SHA-256 " in rows
    assert files.startswith("2: ") and f"{key} was no file, now {place}/edited/rows.jsonl" in files
    assert [row["step"] for row in read_metrics(place / "run")] == [1, 2, 3, 4]
    said = (place / "run" / "warnings.jsonl").read_text()
    for option in OTHER_KEYS[kind]:
        assert f"{option.split('=')[0]}: " in said
    assert "edited" not in said and FIXED_KEYS[kind][0].split("=")[0] not in said, "a refused start leaves nothing"

    _rows(place / "data" / "rows.jsonl", last="c2")  # the same name, other rows
    (edited,) = _continued(kind, place, [["run.iterations=5"]])
    assert edited.startswith("2: ") and f"{key} was {place}/data/renamed.jsonl" in edited
    assert checkpoint.steps(place / "run" / "checkpoints") == [3, 4]
    assert json.loads((place / "run" / "run_status.json").read_text())["exit_code"] == 2


def test_frozen_models_may_move_and_not_become_others(place: Path) -> None:
    """The start models are not read again, but the policy is the reference where none is named."""
    more = "run.iterations=2"
    same = [f"model.policy={place}/moved/policy", f"model.reward={place}/moved/reward"]
    outcomes = _continued(
        "rl",
        place,
        [
            [],
            [more, f"model.reference={place}/models/policy"],
            [more, f"model.reward={place}/others/reward"],
            [more, "model.reward=python:tests.reward_functions:length"],
            [more, *same, f"model.critic={place}/others/reward"],
        ],
    )
    assert [outcome[:1] for outcome in outcomes] == ["", "2", "2", "2", ""], outcomes
    for outcome, key in zip(outcomes[1:4], ("reference", "reward", "reward"), strict=True):
        assert f"  - model.{key} was made of " in outcome and outcome.count("  - ") == 1 + ("python" in outcome)
    assert "now of python:tests.reward_functions:length" in outcomes[3]


def test_a_reward_function_is_told_the_domains_so_their_names_count(place: Path) -> None:
    function = "model.reward=python:tests.reward_functions:length"
    renamed = [function, "run.iterations=2", f"data.prompts=[{place}/data/renamed.jsonl]"]
    outcomes = _continued("rl", place, [[function], renamed, [*renamed, "data.domains=[rows]"]])
    assert [outcome[:1] for outcome in outcomes] == ["", "2", ""], outcomes


def test_a_model_that_computes_something_else_does_not_take_the_checkpoints_weights(tmp_path: Path) -> None:
    """Weights of the same sizes fit whatever the norms' epsilon and the rotary base are."""
    shape = ModelShape(32, 16, 24, 1, 2, 1, 8, norm_eps=1e-5)
    hf_config(shape).save_pretrained(tmp_path / "step_00000001" / "policy")
    check_shape(shape, tmp_path / "step_00000001" / "policy")
    check_shape(replace(shape, eos_token_id=3, initializer_range=0.5), tmp_path / "step_00000001" / "policy")
    with pytest.raises(ConfigError, match=r"step_00000001(?s:.*)policy: norm_eps was 1e-05, now 1e-06"):
        check_shape(replace(shape, norm_eps=1e-6), tmp_path / "step_00000001" / "policy")
    assert shape_hash(shape) == shape_hash(replace(shape, pad_token_id=1)) != shape_hash(replace(shape, rope_theta=5e5))


def test_an_imported_model_is_no_run_to_continue() -> None:
    """`--from-hf FOLDER runs/x`, and then a command with run.name=x."""
    with pytest.raises(ConfigError, match=r"holds an imported model .* name it as model\.policy"):
        Fixed({}).check_settings(Path("runs/x/checkpoints/step_00000000"), {"step": 0, "heads": {"model": "lm"}})
