"""Qwen3, dense (arXiv:2505.09388): a Llama that normalises each query and key head before the rotary embedding."""

from __future__ import annotations

from typing import Any, ClassVar

from gipo_mc.models.families.base import Family, sliding_layers
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.weights.mapping import Mapping, Whole


class Qwen3(Family):
    """The norms of queries and keys are the same on every tensor rank, but each rank's gradient of them is that of its
    own heads: Megatron adds the shares up for parameters of these names (finalize_model_grads)."""

    model_type = "qwen3"
    hf_name = "Qwen3"
    hf_fields: ClassVar = {"use_sliding_window": False, "attention_bias": False}
    megatron = Family.megatron | {"qk_layernorm": True}

    def refused(self, config: Any) -> list[str]:
        problems = super().refused(config) + sliding_layers(config)
        if config.attention_bias:
            problems.append("attention_bias=true: only Qwen3 models without biases are supported")
        return problems

    def layer_tensors(self, shape: ModelShape, prefix: str) -> dict[str, Mapping]:
        return super().layer_tensors(shape, prefix) | {
            f"self_attention.{which}_layernorm.weight": Whole(
                f"{prefix}self_attn.{which}_norm.weight", (shape.head_dim,)
            )
            for which in "qk"
        }
