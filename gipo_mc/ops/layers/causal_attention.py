"""Causal attention of whole sequences, rotary embedding included, as training and scoring need it on the CPU.

The kernel reads queries, keys and values where the QKV projection left them and writes their gradient there, so that
nothing is split, permuted, joined or kept but two numbers for each query. Float32 on the CPU up to `LONGEST` positions;
anything else is computed by the eager definition, `gipo_mc.ops.layers.reference.causal_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gipo_mc.ops import native
from gipo_mc.ops.layers import reference

#: Positions up to which the kernel was seen to be faster than torch's flash attention: it keeps a whole row of scores
#: forward, and backward all scores of a query head.
LONGEST = 1024


def has_kernel(x: Tensor, positions: int) -> bool:
    """Is there one for tensors like x and so many positions?"""
    return positions <= LONGEST and native.fused(x)


def causal_attention(qkv_LBC: Tensor, cos_PR: Tensor, sin_PR: Tensor, groups: int, scale: float) -> Tensor:
    """softmax(scale q k^T + causal mask) v of rotated queries and keys, differentiable once with respect to qkv_LBC.

    qkv_LBC: [L, B, G * (H / G + 2) * D] for G = `groups` key heads: for each its H / G query heads, then the key, then
        the value, as Megatron's linear_qkv gives them. D is even. [L, B] or, transposed, [B, L] in memory is read
        where it lies, and the result has the same order.
    cos_PR, sin_PR: float32 [P, D / 2], P >= L: of positions 0 to P - 1.
    scale: of the products of queries and keys.

    Returns [L, B, H * D]. Of finite values a row depends on its own sequence alone, and on positions up to its own: not
    on the other sequences, and not on the number of threads. Its bits are the kernel's up to `LONGEST` positions,
    padding counted, and torch's beyond.
    Raises ValueError where shapes or devices do not fit each other.
    """
    if groups < 1 or cos_PR.dim() != 2 or cos_PR.shape[1] < 1 or {cos_PR.device, sin_PR.device} != {qkv_LBC.device}:
        raise ValueError(
            f"causal_attention: groups={groups}, cosines {list(cos_PR.shape)} on {cos_PR.device}, sines on "
            f"{sin_PR.device}; give at least one key head, and tables [P, D / 2] on {qkv_LBC.device}, as qkv_LBC is."
        )
    width = 2 * cos_PR.shape[1]
    if qkv_LBC.dim() != 3 or qkv_LBC.shape[2] % (groups * width) or qkv_LBC.shape[2] < 3 * groups * width:
        raise ValueError(
            f"causal_attention: qkv_LBC has shape {list(qkv_LBC.shape)}; give [L, B, {groups} * (H / {groups} + 2) * "
            f"{width}], as there are {groups} key heads and cosines for heads of {width}."
        )
    if cos_PR.shape != sin_PR.shape or len(cos_PR) < len(qkv_LBC):
        raise ValueError(
            f"causal_attention: cosines {list(cos_PR.shape)} and sines {list(sin_PR.shape)} must be of as many "
            f"positions, and of at least the {len(qkv_LBC)} of qkv_LBC."
        )
    if not has_kernel(qkv_LBC, len(qkv_LBC)):
        return reference.causal_attention(qkv_LBC, cos_PR, sin_PR, groups, scale)
    if cos_PR.stride() != sin_PR.stride() or cos_PR.stride(1) != 1 or not native.fused(cos_PR, sin_PR):
        cos_PR, sin_PR = (table_PR.float().contiguous() for table_PR in (cos_PR, sin_PR))
    if qkv_LBC.requires_grad and torch.is_grad_enabled():
        return _CausalAttention.apply(qkv_LBC, cos_PR, sin_PR, groups, scale)  # type: ignore[no-any-return,no-untyped-call]
    return _forward(_in_order(qkv_LBC), cos_PR, sin_PR, groups, scale)[0]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_LBC: Tensor, cos_PR: Tensor, sin_PR: Tensor, groups: int, scale: float) -> Tensor:
        qkv_LBC = _in_order(qkv_LBC)
        seen_LBC, statistics = _forward(qkv_LBC, cos_PR, sin_PR, groups, scale)
        ctx.save_for_backward(qkv_LBC, cos_PR, sin_PR, statistics)
        ctx.groups, ctx.scale = groups, scale
        return seen_LBC

    @staticmethod
    @native.differentiable_once("causal_attention")
    def backward(ctx: Any, of_seen_LBC: Tensor) -> tuple[Tensor, None, None, None, None]:
        qkv_LBC, cos_PR, sin_PR, statistics = ctx.saved_tensors
        of_qkv_LBC = torch.empty_like(qkv_LBC)
        of_seen_LBC = of_seen_LBC.contiguous() if qkv_LBC.is_contiguous() else _sequence_first(of_seen_LBC)
        arguments = _arguments(qkv_LBC, cos_PR, sin_PR, ctx.groups, ctx.scale, statistics)
        addresses = (of_seen_LBC.data_ptr(), of_qkv_LBC.data_ptr())
        native.call("causal_attention_gradient", qkv_LBC.device, *arguments, *addresses)
        return of_qkv_LBC, None, None, None, None


def _in_order(x_LBC: Tensor) -> Tensor:
    """Rows as the kernel reads them: of one position after another, or of one sequence after another."""
    return x_LBC if x_LBC.transpose(0, 1).is_contiguous() else x_LBC.contiguous()


def _sequence_first(x_LBC: Tensor) -> Tensor:
    return x_LBC.transpose(0, 1).contiguous().transpose(0, 1)


def _forward(qkv_LBC: Tensor, cos_PR: Tensor, sin_PR: Tensor, groups: int, scale: float) -> tuple[Tensor, Tensor]:
    """What is seen, rows in the order of those of qkv_LBC, and float32 [2, B, H, L]: the largest exponent of each
    query, and 1 / the sum of its weights."""
    length, batch, columns = qkv_LBC.shape
    width = 2 * cos_PR.shape[1]
    heads = columns // width - 2 * groups
    if qkv_LBC.is_contiguous():
        seen_LBC = qkv_LBC.new_empty((length, batch, heads * width))
    else:
        seen_LBC = qkv_LBC.new_empty((batch, length, heads * width)).transpose(0, 1)
    statistics = qkv_LBC.new_empty((2, batch, heads, length))
    arguments = _arguments(qkv_LBC, cos_PR, sin_PR, groups, scale, statistics)
    native.call("causal_attention", qkv_LBC.device, *arguments, seen_LBC.data_ptr(), 0)
    return seen_LBC, statistics


def _arguments(
    qkv_LBC: Tensor, cos_PR: Tensor, sin_PR: Tensor, groups: int, scale: float, statistics: Tensor
) -> tuple[int | float, ...]:
    """What both kernels take first."""
    length, batch, columns = qkv_LBC.shape
    width = 2 * cos_PR.shape[1]
    sizes = (length, batch, groups, columns // (groups * width) - 2, width)
    tables = (cos_PR.data_ptr(), sin_PR.data_ptr(), cos_PR.stride(0))
    return qkv_LBC.data_ptr(), not qkv_LBC.is_contiguous(), *sizes, *tables, scale, statistics.data_ptr()
