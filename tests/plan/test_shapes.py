"""Sizes are read as the models' own code reads them, wherever a name leads."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gipo_mc.data.synthetic import builtin_llama_config
from gipo_mc.errors import ConfigError
from gipo_mc.models.families import FAMILIES, read_shape
from gipo_mc.models.hf_files import save_config
from gipo_mc.models.shape import ModelShape
from gipo_mc.plan.shapes import FAMILIES as PLANNED
from gipo_mc.plan.shapes import KNOWN, known_shape, shape_of

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim", "max_positions")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_is_read_as_the_trainers_read_it(family: str, tied: bool, tmp_path: Path):
    shape = ModelShape(77, 48, 96, 3, 6, 2, 8, family=family, tied=tied)
    save_config(shape, tmp_path, "lm")
    read, planned = read_shape(tmp_path), shape_of(str(tmp_path), "model.policy")
    for name in (*SIZES, "tied", "family"):
        assert getattr(planned, name) == getattr(read, name), name
    megatron = FAMILIES[family].megatron
    assert PLANNED[family] == (megatron["add_qkv_bias"], megatron["qk_layernorm"])


def test_families_are_those_that_can_be_trained():
    assert PLANNED.keys() == FAMILIES.keys()
    assert {field.name for field in fields(ModelShape)} >= set(SIZES)


def test_names_lead_to_published_sizes():
    assert known_shape("Meta-Llama-3.1-8B-Instruct") == known_shape("llama-3.1-8b")
    for name in ("Meta-Llama-3-8B", "Meta-Llama-3-8B-Instruct", "llama-3-8b", "LLAMA-3-8B", "Llama3-8B"):
        known = shape_of(f"meta-llama/{name}", "model.policy")
        assert known == replace(shape_of("llama-3.1-8b", "--shape"), max_positions=8192), name
    assert known_shape("Llama-3.3-70B-Instruct") == known_shape("Llama-3.1-70B")
    assert shape_of("meta-llama/Llama-2-7b-hf", "model.policy").intermediate_size == 11008
    assert all(known_shape(name) for name in KNOWN)
    built = builtin_llama_config()
    small = known_shape("builtin_sft")
    assert small is not None and small.vocab_size == built["vocab_size"] and small.layers == built["num_hidden_layers"]


def test_a_run_leads_to_its_checkpoint_or_to_its_configuration(tmp_path: Path):
    shape = ModelShape(64, 32, 64, 2, 4, 2, 8)
    for step, layers in ((10, 1), (20, 2)):
        folder = tmp_path / f"run/checkpoints/step_{step:08d}/policy"
        folder.mkdir(parents=True)
        save_config(ModelShape(64, 32, 64, layers, 4, 2, 8), folder, "lm")
    assert shape_of(str(tmp_path / "run"), "model.policy").layers == shape.layers
    (tmp_path / "sft.yaml").write_text("run: {name: my_sft}\nmodel: {policy: Qwen/Qwen3-8B}\n")
    assert shape_of("runs/my_sft", "model.policy", str(tmp_path / "rl.yaml")).family == "qwen3"
    (tmp_path / "loop.yaml").write_text("run: {name: loop}\nmodel: {policy: runs/loop}\n")
    with pytest.raises(ConfigError, match="--shape"):
        shape_of("runs/loop", "model.policy", str(tmp_path / "rl.yaml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON: Expecting property name enclosed in double quotes in line 1, column 2"),
        ("[]", "an object in braces"),
        (json.dumps({"model_type": "llama", "vocab_size": 8, "hidden_size": 8}),
         "lacks intermediate_size, num_hidden_layers, num_attention_heads"),
        (json.dumps({"vocab_size": 8}), "has no model_type: the families that can be planned and trained are llama"),
        (json.dumps({"model_type": "gpt2", "n_head": 12}), "is of the family gpt2: the families .* are llama, mistral"),
        (json.dumps({"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                     "num_attention_heads": "x", "model_type": "llama"}), "num_attention_heads='x'"),
        (json.dumps({"vocab_size": -1, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                     "num_attention_heads": 1, "model_type": "llama"}), "vocab_size"),
        (json.dumps({"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                     "num_attention_heads": 1, "model_type": "mixtral"}), "is of the family mixtral"),
    ],
)  # fmt: skip
def test_files_that_describe_no_model(text: str, said: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        shape_of(str(tmp_path / "config.json"), "--shape")
