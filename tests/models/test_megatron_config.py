"""What Megatron is told of a shape, and of its family."""

from __future__ import annotations

import torch

from gipo_mc.models.families import read_shape
from gipo_mc.models.megatron_config import transformer_config
from tests.models.tiny import config, layout


def test_megatron_is_told_a_models_constants_not_its_defaults() -> None:
    told = transformer_config(read_shape(config()), layout(), torch.float32)
    assert (told.hidden_dropout, told.attention_dropout, told.layernorm_epsilon) == (0.0, 0.0, 1e-5)
    assert told.normalization == "RMSNorm" and told.gated_linear_unit and not told.add_bias_linear
    assert told.activation_func is torch.nn.functional.silu
    assert told.calculate_per_token_loss and told.variable_seq_lengths
    low = transformer_config(read_shape(config()), layout(), torch.bfloat16)
    assert low.bf16 and low.params_dtype is torch.bfloat16 and low.pipeline_dtype is torch.bfloat16


def test_megatron_is_told_of_biases_and_norms_of_heads() -> None:
    for family, bias, norm in (("mistral", False, False), ("qwen2", True, False), ("qwen3", False, True)):
        told = transformer_config(read_shape(config(family)), layout(), torch.float32)
        assert (told.add_qkv_bias, told.qk_layernorm, told.add_bias_linear) == (bias, norm, False)
