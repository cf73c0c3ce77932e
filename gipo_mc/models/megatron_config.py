"""A model's shape as Megatron-core wants to hear it.

Megatron's defaults (dropout 0.1, epsilon 1e-5, rotary base 10000, biases) are no model's here and never relied on.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from gipo_mc.models.execution import PLAIN, Execution
from gipo_mc.models.families import family_of
from gipo_mc.models.shape import ModelShape
from gipo_mc.parallel.layout import Layout


def transformer_config(
    shape: ModelShape, layout: Layout, dtype: torch.dtype, execution: Execution = PLAIN
) -> TransformerConfig:
    """Megatron's configuration of this shape on this layout.

    Losses arrive normalised over the whole mini-batch, so `calculate_per_token_loss` keeps the schedules from dividing
    by the number of micro-batches. Initialisation is a no-op: weights come from a file or from named streams.
    """
    on_cuda = layout.device.type == "cuda"
    with warnings.catch_warnings():
        # Megatron doubts that attention needs recomputation under TransformerEngine, whether that is used or not.
        warnings.filterwarnings("ignore", message=".*core_attn is from transformer_engine")
        return TransformerConfig(
            **family_of(shape).megatron,
            **execution.megatron,
            num_layers=shape.layers,
            hidden_size=shape.hidden_size,
            ffn_hidden_size=shape.intermediate_size,
            num_attention_heads=shape.heads,
            num_query_groups=shape.kv_heads,
            kv_channels=shape.head_dim,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            add_bias_linear=False,
            gated_linear_unit=True,
            activation_func=F.silu,
            normalization="RMSNorm",
            layernorm_epsilon=shape.norm_eps,
            init_method=_leave_empty,
            output_layer_init_method=_leave_empty,
            embedding_init_method=_leave_empty,
            params_dtype=dtype,
            pipeline_dtype=dtype,
            bf16=dtype is torch.bfloat16,
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            sequence_parallel=layout.sequence and layout.tensor > 1,
            calculate_per_token_loss=True,
            # Micro-batches of different lengths travel through the pipeline; Megatron refuses that for any dispatcher
            # but this one, although there is no mixture of experts here.
            variable_seq_lengths=True,
            moe_token_dispatcher_type="alltoall",
            use_cpu_initialization=not on_cuda,
            bias_activation_fusion=on_cuda,
            bias_dropout_fusion=on_cuda,
            masked_softmax_fusion=False,
            persist_layer_norm=False,
            apply_rope_fusion=False,
            gradient_accumulation_fusion=False,
            deallocate_pipeline_outputs=layout.pipeline > 1,
        )


def _leave_empty(weight: torch.Tensor) -> torch.Tensor:
    return weight
