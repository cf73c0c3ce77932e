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
from gipo_mc.models.megatron_config import transformer_config
from gipo_mc.parallel.layout import Layout
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


def layout(**changes: Any) -> Layout:
    fields: dict[str, Any] = {
        "world_size": 1,
        "rank": 0,
        "tensor": 1,
        "pipeline": 1,
        "data": 1,
        "tensor_rank": 0,
        "pipeline_rank": 0,
        "data_rank": 0,
        "sequence": False,
        "device": torch.device("cpu"),
    }
    return Layout(**(fields | changes))


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


def test_check_reports_every_misfit_with_numbers_and_fix() -> None:
    shape = read_shape(config())
    shape.check(2, 4, sequence_length=64, tokenizer_size=131)
    with pytest.raises(ConfigError) as error:
        shape.check(4, 3, sequence_length=65, tokenizer_size=132)
    message = str(error.value)
    assert "parallel.tensor=4 does not divide the model's 2 key-value heads: use one of 1, 2" in message
    assert "parallel.pipeline=3 does not divide the model's 4 layers: use one of 1, 2, 4" in message
    assert "65 tokens" in message and "64 positions" in message
    assert "ids up to 131" in message and "ends at 130" in message
    assert "attention heads" not in message, "4 ranks do divide 4 heads"


def test_the_padded_vocabulary_does_not_depend_on_common_tensor_sizes() -> None:
    shape = read_shape(config())
    assert {shape.padded_vocab(tensor) for tensor in (1, 2, 4, 8, 16)} == {192}
    assert shape.padded_vocab(3) == 192 and shape.padded_vocab(5) == 320
    assert read_shape(config(vocab_size=128256)).padded_vocab(8) == 128256


def test_megatron_is_told_llamas_constants_not_its_defaults() -> None:
    told = transformer_config(read_shape(config()), layout(), torch.float32)
    assert (told.hidden_dropout, told.attention_dropout, told.layernorm_epsilon) == (0.0, 0.0, 1e-5)
    assert told.normalization == "RMSNorm" and told.gated_linear_unit and not told.add_bias_linear
    assert told.activation_func is torch.nn.functional.silu
    assert told.calculate_per_token_loss and told.variable_seq_lengths
    low = transformer_config(read_shape(config()), layout(), torch.bfloat16)
    assert low.bf16 and low.params_dtype is torch.bfloat16 and low.pipeline_dtype is torch.bfloat16
