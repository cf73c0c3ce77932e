"""Megatron's layers as a CPU runs them: the same arithmetic on the same parameters, bit by bit, without what stands
around it for GPUs, other architectures and several ranks, which takes a small model as long as the arithmetic.

What these classes leave to Megatron's own forward is named where they do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor


class WholeColumn(ColumnParallelLinear):
    """Where one rank holds the whole weight there is nothing to exchange. With a bias: Megatron's forward."""

    def forward(self, input_: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        if others or options or self.bias is not None:
            return super().forward(input_, *others, **options)  # type: ignore[no-any-return]
        return F.linear(input_, self.weight), None


class WholeRow(RowParallelLinear):
    """As `WholeColumn`."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.bias is not None:
            return super().forward(input_)  # type: ignore[no-any-return]
        return F.linear(input_, self.weight), None


class _GatedSilu(torch.autograd.Function):
    """Autograd would keep one tensor more, and join the gradients of the halves in a copy."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        silu = F.silu(gate)
        ctx.save_for_backward(both, silu)
        return silu * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        both, silu = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        of_both = torch.empty_like(both)
        of_gate, of_up = of_both.chunk(2, dim=-1)
        torch.mul(gradient, silu, out=of_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        return of_both


def gated_silu(both: Tensor) -> Tensor:
    """silu(gate) * up of [..., gate and up], [..., F]."""
    if both.requires_grad and torch.is_grad_enabled():
        return _GatedSilu.apply(both)  # type: ignore[no-any-return,no-untyped-call]
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class PlainLayer(TransformerLayer):
    """x + attention(norm(x)), then x + down(silu(gate(norm(x))) * up(norm(x))): no dropout, no cross attention, no
    biases in the feed-forward part, no experts, no cache. All families of this package are so."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, rotary_pos_emb: Any = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        seen, _bias = self.self_attention(self.input_layernorm(hidden_states), None, rotary_pos_emb=rotary_pos_emb)
        hidden_states = hidden_states + seen
        both, _bias = self.mlp.linear_fc1(self.pre_mlp_layernorm(hidden_states))
        changed, _bias = self.mlp.linear_fc2(gated_silu(both))
        return hidden_states + changed, None
