"""The parts of a layer that Megatron-core does not bring for every device, and the layer specs that use them.

Without TransformerEngine, Megatron's own norm refuses sequence parallelism and its attention holds O(L^2) scores. The
modules here are a few lines on top of torch's kernels: `F.rms_norm`, and `F.scaled_dot_product_attention`, which is
flash attention on a GPU; in float32 on a CPU they stand on those of `gipo_mc.ops`. With TransformerEngine its linear
layers (norm fused in) are used; the attention stays.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.random import checkpoint
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from gipo_mc.models.rotary import halves, rotate
from gipo_mc.ops import causal_attention, gated_silu, norm_of_sum
from gipo_mc.ops.layers import reference
from gipo_mc.ops.layers.causal_attention import has_kernel
from gipo_mc.parallel.megatron import transformer_engine
from gipo_mc.parallel.megatron.versions import mlp


class RMSNorm(torch.nn.Module):
    """y = w * x / sqrt(mean(x^2) + eps) over the last dimension, any leading shape, dtype kept.

    Zhang and Sennrich 2019 (arXiv:1910.07467). Under sequence parallelism a rank normalises its own tokens, so the
    weight's gradient is a partial sum; the attribute tells Megatron's `finalize_model_grads` to add them up.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        device = torch.cuda.current_device() if not config.use_cpu_initialization else None
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x)[1]

    def after(self, x: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x + other, that normalised). Without `other` (x, x normalised): whoever goes on with both has the gradients
        of both joined in one pass."""
        return norm_of_sum(x, other, self.weight, self.eps)


class CausalAttention(MegatronModule):
    """softmax(q k^T / sqrt(D) + causal mask) v, in Megatron's layout, without an O(L^2) buffer.

    query [L, B, heads, D], key and value [L, B, kv heads, D] (the rank's share of heads) -> [L, B, heads * D]. There is
    no other mask: inputs are right-padded, so that a causal one keeps padding from reaching any real token.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, softmax_scale: float | None = None, **_: Any):
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return reference.attended(query, key, value, self.softmax_scale)

    def joined(self, qkv_LBC: Tensor, tables: Tensor) -> Tensor:
        """The same of the output of the QKV projection, the rotation by `turning_tables` included."""
        cos_PR, sin_PR = halves(tables)
        assert self.config.num_query_groups is not None, (
            "Megatron sets it: one for each head where nothing says otherwise"
        )
        groups = self.config.num_query_groups // self.config.tensor_model_parallel_size
        scale = self.softmax_scale or (2 * cos_PR.shape[1]) ** -0.5
        return causal_attention(qkv_LBC, cos_PR, sin_PR, groups, scale)


class RotaryAttention(SelfAttention):
    """Megatron's self-attention over whole sequences: projection, rotary embedding, core attention, projection.

    rotary_pos_emb: the tables of `turning_tables`, made once a forward pass; Megatron takes sines and cosines of its
    angles in every layer, for queries and for keys. Raises ValueError for packed sequences and for Megatron's caches,
    neither of which is looked at here.
    """

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, rotary_pos_emb: Any = None, **others: Any
    ) -> tuple[Tensor, Tensor | None]:
        for name in ("packed_seq_params", "inference_context"):
            if others.get(name) is not None:
                raise ValueError(f"this attention takes padded whole sequences, and does not know {name}")
        if self._joined(hidden_states, rotary_pos_emb):
            qkv, _bias = self.linear_qkv(hidden_states)
            return self._projected(self.core_attention.joined, qkv, rotary_pos_emb)
        query, key, value = self.get_query_key_value_tensors(hidden_states)
        if self.config.num_query_groups < self.config.tensor_model_parallel_size:
            # Megatron gathers the projections of all ranks and takes parts of them: let go of the rest.
            value = value.contiguous()
        return self._projected(self._attend, query, key, value, rotary_pos_emb)

    def _joined(self, hidden_states: Tensor, tables: Tensor) -> bool:
        """Is all between the two projections one kernel? It takes heads as they are projected."""
        parted = self.config.num_query_groups < self.config.tensor_model_parallel_size
        return not (parted or self.config.qk_layernorm) and has_kernel(hidden_states, tables.shape[1])

    def _projected(self, attend: Any, *parts: Tensor) -> tuple[Tensor, Tensor | None]:
        """`attend` is all between the two projections, which is what selective recomputation computes again."""
        if self.checkpoint_core_attention and self.training:
            return self.linear_proj(checkpoint(attend, False, *parts))  # type: ignore[no-any-return]
        return self.linear_proj(attend(*parts))  # type: ignore[no-any-return]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, tables: Tensor) -> Tensor:
        return self.core_attention(rotate(query, tables), rotate(key, tables), value)  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------------------------------- on a CPU
# The same layers of the same parameters, without what stands around them for GPUs, other architectures and several
# ranks, which takes a small model as long as the arithmetic.
class WholeColumn(ColumnParallelLinear):
    """Where one rank holds the whole weight there is nothing to exchange. With a bias: Megatron's forward."""

    def forward(self, input_: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        if others or options or self.bias is not None:
            return super().forward(input_, *others, **options)  # type: ignore[no-any-return]
        return _product(input_, self.weight), None


class WholeRow(RowParallelLinear):
    """As `WholeColumn`."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.bias is not None:
            return super().forward(input_)  # type: ignore[no-any-return]
        return _product(input_, self.weight), None


def _product(x_LBH: Tensor, weight_NH: Tensor) -> Tensor:
    """[L, B, N]: one product of matrices. With one row torch's own linear takes another way, with other rounding, for a
    frozen weight than for a trained one."""
    return torch.mm(x_LBH.reshape(-1, x_LBH.shape[-1]), weight_NH.t()).view(*x_LBH.shape[:-1], len(weight_NH))


class PlainLayer(TransformerLayer):
    """x + attention(norm(x)), then x + down(silu(gate(norm(x))) * up(norm(x))): no dropout, no cross attention, no
    biases in the feed-forward part, no experts, no cache. All families of this package are so."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, rotary_pos_emb: Any = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        hidden_states, normed = self.input_layernorm.after(hidden_states)
        seen, _bias = self.self_attention(normed, None, rotary_pos_emb=rotary_pos_emb)
        hidden_states, normed = self.pre_mlp_layernorm.after(hidden_states, seen)
        both, _bias = self.mlp.linear_fc1(normed)
        changed, _bias = self.mlp.linear_fc2(gated_silu(both))
        return hidden_states + changed, None


# --------------------------------------------------------------------------------------------------------- the specs
def has_transformer_engine(config: TransformerConfig) -> bool:
    """TransformerEngine is used where it can be imported and the model lives on a GPU."""
    return not config.use_cpu_initialization and not transformer_engine.problem()


def block_spec(config: TransformerConfig, chunk: int | None = None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage, or of one chunk of an interleaved pipeline's stage, and the final norm."""
    layers = [_layer(config)] * get_num_layers_to_build(config, chunk)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)


def _layer(config: TransformerConfig) -> ModuleSpec:
    column, row, norm = ColumnParallelLinear, RowParallelLinear, RMSNorm
    # Checkpoints carry TransformerEngine's names, so that one written without it loads with it.
    names = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    layer = TransformerLayer
    if config.use_cpu_initialization:
        layer = PlainLayer
        if config.tensor_model_parallel_size == 1:
            column, row = WholeColumn, WholeRow
    if has_transformer_engine(config):
        # Its column-parallel linear has the norm in it, where `PlainLayer` has none to go through.
        (column, row), norm, names, layer = transformer_engine.linears(), IdentityOp, {}, TransformerLayer
    return ModuleSpec(
        module=layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=RotaryAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=CausalAttention,
                    linear_proj=row,
                    q_layernorm=_head_norm(config),
                    k_layernorm=_head_norm(config),
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mlp(MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=names,
        ),
    )


def _head_norm(config: TransformerConfig) -> type[torch.nn.Module]:
    """The norm of each query and key head, before the rotary embedding, in families that have one."""
    return RMSNorm if config.qk_layernorm else IdentityOp
