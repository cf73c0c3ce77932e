"""A chunk's forward pass over packed tokens with a KV cache: what generation runs instead of `ModelChunk.forward`.

    token, slot, position [N] -> embedding or the previous chunk's states -> layers -> states [N, H]

Megatron's layers read one length for all rows and launch about eighty torch calls a layer for a single position; here
a layer is a dozen calls on the same parameters, rows have positions of their own, and nothing is padded. There is no
second copy of a weight: what the optimizer changes is what the next call reads. `rl/` compares the sampler's log-probs
with those of the training forward pass in every iteration, and tests hold the two against each other in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.models.kv_cache import KVCache
from gipo_mc.models.rotary import rotary_tables
from gipo_mc.models.stage import ModelChunk
from gipo_mc.ops import causal_attention, gated_silu, norm_of_sum
from gipo_mc.ops.layers.causal_attention import has_kernel
from gipo_mc.ops.paged_attention import paged_attention, rotate_and_append
from gipo_mc.parallel.collectives import gather_in_rank_order


@dataclass(frozen=True)
class Tokens:
    """Packed tokens of one pass.

    token_N, slot_N, position_N: int64 [N]; position -1 is a row that stands for nothing.
    prompts: (first, stop, slot) of each whole prompt among the N tokens; empty when each token continues a sequence
        whose earlier tokens are cached. One pass holds prompts or continuations, not both.
    last_n: int64 [n], the tokens whose states are wanted from the last stage; None: all.
    """

    token_N: Tensor
    slot_N: Tensor
    position_N: Tensor
    prompts: Sequence[tuple[int, int, int]] = ()
    last_n: Tensor | None = None


@dataclass(frozen=True)
class _Layer:
    """The parameters of one layer, this rank's shards."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    proj: Tensor
    feed_forward_norm: Tensor
    gate_up: Tensor
    down: Tensor


class CachedForward:
    """Runs one chunk of a stage, in most layouts the only one. Its parameters are the model's own. Use it without
    autograd.

    longest: positions of the longest sequence; rotary tables are made for so many, once. first: where this chunk's
    layers begin among those of the stage's cache.
    """

    def __init__(self, model: ModelChunk, longest: int, first: int = 0) -> None:
        self.model, self.layout, self.shape = model, model.layout, model.shape
        self._layers = [_layer_of(layer) for layer in model.decoder.layers]
        self.layers = range(first, first + len(self._layers))
        self._scale = self.shape.head_dim**-0.5
        self._group = parallel_state.get_tensor_model_parallel_group() if self.layout.tensor > 1 else None
        cos_PR, sin_PR = rotary_tables(model.rotary_pos_emb.inv_freq, longest)
        self._tables = cos_PR, sin_PR

    def __call__(self, tokens: Tokens, received_NH: Tensor | None, cache: KVCache) -> Tensor:
        """States of this chunk, [N, H]; of the last one normalised, and [n, H] for `tokens.last_n`.

        received_NH: the previous chunk's states; None for the first one.
        """
        x_NH = self._embed(tokens.token_N) if received_NH is None else received_NH
        for number in range(len(self._layers)):
            # Behind the last attention nothing mixes tokens any more: go on with those that are asked for.
            ends = self.model.post_process and number == len(self._layers) - 1
            x_NH = self._run_layer(number, x_NH, tokens, cache, tokens.last_n if ends else None)
        if self.model.post_process:
            return self._norm(x_NH, self.model.decoder.final_layernorm.weight)
        return x_NH

    def _embed(self, token_N: Tensor) -> Tensor:
        weight_VH = self.model.embedding.word_embeddings.weight
        if self._group is None:
            return F.embedding(token_N, weight_VH)
        row_N = token_N - self.model.vocab_start
        foreign_N = (row_N < 0) | (row_N >= len(weight_VH))
        x_NH = F.embedding(row_N.masked_fill(foreign_N, 0), weight_VH).masked_fill(foreign_N[:, None], 0)
        return self._sum(x_NH)

    def _run_layer(self, number: int, x_NH: Tensor, tokens: Tokens, cache: KVCache, keep_n: Tensor | None) -> Tensor:
        layer = self._layers[number]
        qkv_NC = self._own_heads(F.linear(self._norm(x_NH, layer.attention_norm), layer.qkv, layer.qkv_bias))
        if layer.query_norm is not None:
            qkv_NC = self._norm_heads(qkv_NC, layer)
        query_NHD = rotate_and_append(
            qkv_NC,
            *self._tables,
            tokens.slot_N,
            tokens.position_N,
            cache.page_table_SP,
            *cache.pools[self.layers[number]],
        )
        if tokens.prompts:
            seen_NC = self._attend_prompts(self.layers[number], qkv_NC, query_NHD, tokens, cache)
        else:
            seen_NC = paged_attention(
                query_NHD,
                *cache.pools[self.layers[number]],
                cache.page_table_SP,
                tokens.slot_N,
                tokens.position_N + 1,
                self._scale,
            )
        if keep_n is not None:
            seen_NC, x_NH = seen_NC[keep_n], x_NH[keep_n]
        summands = (self._sum(F.linear(seen_NC, layer.proj)), x_NH)
        x_NH, normed_NH = norm_of_sum(*summands, layer.feed_forward_norm, self.shape.norm_eps)
        gated_NF = gated_silu(F.linear(normed_NH, layer.gate_up))
        return self._sum(F.linear(gated_NF, layer.down)).add_(x_NH)

    def _own_heads(self, qkv_NC: Tensor) -> Tensor:
        """Projected heads of this rank. Where there are fewer key-value heads than ranks, a rank has neither a whole
        one nor its queries in its rows: all rows are gathered, and it takes a key-value head and some of its queries.
        """
        shape, tensor = self.shape, self.layout.tensor
        if shape.kv_heads >= tensor:
            return qkv_NC
        gathered_RNC = gather_in_rank_order(qkv_NC, self._group)
        heads_NGKD = gathered_RNC.transpose(0, 1).reshape(len(qkv_NC), shape.kv_heads, -1, shape.head_dim)
        sharing, queries = tensor // shape.kv_heads, shape.heads // tensor
        group, place = divmod(self.layout.tensor_rank, sharing)
        query_NKD = heads_NGKD[:, group, place * queries : (place + 1) * queries]
        return torch.cat([query_NKD, heads_NGKD[:, group, -2:]], dim=1).flatten(1)

    def _attend_prompts(self, number: int, qkv_NC: Tensor, query_NHD: Tensor, tokens: Tokens, cache: KVCache) -> Tensor:
        """Causal attention within each prompt, as in training, or by torch's kernels (flash attention on a GPU): no
        mask, no padding."""
        out_NHD = torch.empty_like(query_NHD)
        # Prompts that stand side by side and are as long as one another are a batch: one call for all of them.
        for length, run in groupby(tokens.prompts, lambda prompt: prompt[1] - prompt[0]):
            prompts = list(run)
            first, stop = prompts[0][0], prompts[-1][1]
            if has_kernel(qkv_NC, length):
                qkv_LSC = qkv_NC[first:stop].unflatten(0, (-1, length)).transpose(0, 1)
                seen_LSC = causal_attention(qkv_LSC, *self._tables, cache.pools[number][0].shape[1], self._scale)
                out_NHD[first:stop] = seen_LSC.transpose(0, 1).reshape(-1, *out_NHD.shape[1:])
                continue
            key_SGLD, value_SGLD = cache.read(number, [slot for _, _, slot in prompts], length)
            query_SLHD, out_SLHD = (x[first:stop].unflatten(0, (-1, length)) for x in (query_NHD, out_NHD))
            out_SHLD = F.scaled_dot_product_attention(
                query_SLHD.transpose(1, 2),
                key_SGLD,
                value_SGLD,
                is_causal=True,
                scale=self._scale,
                enable_gqa=query_NHD.shape[1] != key_SGLD.shape[1],
            )
            out_SLHD.copy_(out_SHLD.transpose(1, 2))
        return out_NHD.flatten(1)

    def _norm_heads(self, qkv_NC: Tensor, layer: _Layer) -> Tensor:
        """Queries and keys normalised head by head, in families that do so."""
        assert layer.query_norm is not None and layer.key_norm is not None
        groups, width = self.shape.kv_heads_on(self.layout.tensor), self.shape.head_dim
        heads_NGKD = qkv_NC.view(len(qkv_NC), groups, -1, width)
        query_NGKD, key_NGKD, value_NGKD = heads_NGKD.split([heads_NGKD.shape[2] - 2, 1, 1], dim=2)
        parts = [self._norm(query_NGKD, layer.query_norm), self._norm(key_NGKD, layer.key_norm), value_NGKD]
        return torch.cat(parts, dim=2).flatten(1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return norm_of_sum(x, None, weight, self.shape.norm_eps)[1]

    def _sum(self, x_NH: Tensor) -> Tensor:
        """Over the tensor ranks."""
        if self._group is not None:
            dist.all_reduce(x_NH, group=self._group)
        return x_NH


def _layer_of(layer: Any) -> _Layer:
    """TransformerEngine's linear layers hold the norm before them; ours stand beside it."""
    attention, feed_forward = layer.self_attention, layer.mlp
    return _Layer(
        attention_norm=_norm_weight(attention.linear_qkv, layer.input_layernorm),
        qkv=attention.linear_qkv.weight,
        qkv_bias=_bias(attention.linear_qkv),
        query_norm=getattr(attention.q_layernorm, "weight", None),
        key_norm=getattr(attention.k_layernorm, "weight", None),
        proj=attention.linear_proj.weight,
        feed_forward_norm=_norm_weight(feed_forward.linear_fc1, layer.pre_mlp_layernorm),
        gate_up=feed_forward.linear_fc1.weight,
        down=feed_forward.linear_fc2.weight,
    )


def _norm_weight(linear: Any, norm: Any) -> Tensor:
    fused: Tensor | None = getattr(linear, "layer_norm_weight", None)
    return norm.weight if fused is None else fused


def _bias(linear: Any) -> Tensor | None:
    bias = getattr(linear, "bias", None)
    return bias if isinstance(bias, Tensor) and bias.numel() else None
