"""Shapes from Hugging Face configs, what is refused, and what Megatron is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gipo_mc.errors import CheckpointError, ConfigError
from gipo_mc.models.families import family_of, hf_config, read_shape
from tests.models.tiny import LLAMA3_ROPE, VARIANTS, config

# As Meta published them, before transformers 5 moved the rotary constants into rope_parameters.
LLAMA2_7B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA32_1B = LLAMA2_7B | {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "rope_scaling": {**LLAMA3_ROPE, "factor": 32.0, "original_max_position_embeddings": 8192},
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}


def write(folder: Path, fields: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_published_configs_of_before_transformers_5(tmp_path: Path) -> None:
    two = read_shape(write(tmp_path, LLAMA2_7B))
    assert (two.layers, two.heads, two.kv_heads, two.head_dim, two.tied) == (32, 32, 32, 128, False)
    assert two.rope_theta == 10000.0 and two.rope_scaling == () and two.norm_eps == 1e-5
    three = read_shape(write(tmp_path, LLAMA32_1B))
    assert (three.kv_heads, three.head_dim, three.tied, three.rope_theta) == (8, 64, True, 500000.0)
    assert dict(three.rope_scaling) == {**LLAMA3_ROPE, "factor": 32.0, "original_max_position_embeddings": 8192}
    assert three.eos_token_id == (128001, 128008, 128009)


def test_llama1_without_kv_heads_head_dim_or_rope(tmp_path: Path) -> None:
    fields = {k: v for k, v in LLAMA2_7B.items() if k not in ("num_key_value_heads", "rope_scaling")}
    shape = read_shape(write(tmp_path, fields))
    assert (shape.kv_heads, shape.head_dim, shape.rope_theta) == (32, 128, 10000.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_to_hf_and_back(name: str, tmp_path: Path) -> None:
    shape = read_shape(config(**VARIANTS[name]))
    assert read_shape(hf_config(shape)) == shape
    hf_config(shape, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    assert read_shape(tmp_path) == shape


def test_rotary_frequencies_are_those_of_transformers() -> None:
    for scaling in (None, LLAMA3_ROPE, {"rope_type": "linear", "factor": 4.0}):
        original = config(rope_theta=20000.0, rope_scaling=scaling)
        shape = read_shape(original)
        found = family_of(shape).rotary_frequencies(shape)
        assert torch.equal(found, LlamaRotaryEmbedding(original).inv_freq)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=true"),
        ({"mlp_bias": True}, "mlp_bias=true"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=32"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Llama") as error:
        read_shape(write(tmp_path, LLAMA2_7B | change))
    assert said in str(error.value)


def test_all_unsupported_features_are_named_at_once(tmp_path: Path) -> None:
    fields = LLAMA2_7B | {"hidden_act": "gelu", "attention_bias": True, "mlp_bias": True}
    with pytest.raises(ConfigError) as error:
        read_shape(write(tmp_path, fields))
    assert str(error.value).count("\n  - ") == 3


def test_unreadable_configs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_shape(tmp_path)
    with pytest.raises(ConfigError, match="model_type=None"):
        read_shape(write(tmp_path, {}))
    with pytest.raises(CheckpointError, match="not a valid Llama config"):
        read_shape(write(tmp_path, LLAMA2_7B | {"hidden_size": 4095}))
