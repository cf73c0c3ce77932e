"""Qwen2 and Qwen2.5, dense (arXiv:2407.10671, 2412.15115): a Llama with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any, ClassVar

from gipo_mc.models.families.base import Family, sliding_layers
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.weights.mapping import Mapping, QueryKeyValue


class Qwen2(Family):
    """Biases of linear_qkv are shared out by heads, as its rows are."""

    model_type = "qwen2"
    hf_name = "Qwen2"
    hf_fields: ClassVar = {"use_sliding_window": False}
    megatron = Family.megatron | {"add_qkv_bias": True}

    def refused(self, config: Any) -> list[str]:
        return super().refused(config) + sliding_layers(config)

    def layer_tensors(self, shape: ModelShape, prefix: str) -> dict[str, Mapping]:
        return super().layer_tensors(shape, prefix) | {
            "self_attention.linear_qkv.bias": QueryKeyValue.of(shape, prefix + "self_attn.", "bias"),
        }
