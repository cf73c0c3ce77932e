"""Eager definitions of the ops of a layer; see `gipo_mc.ops.reference` for what references are. Any float dtype, any
device, and any number of derivatives: these are also what runs where there is no kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gipo_mc.ops.checks import accumulator
from gipo_mc.ops.reference_attention import rotated


def causal_attention(qkv_LBC: Tensor, cos_PR: Tensor, sin_PR: Tensor, groups: int, scale: float) -> Tensor:
    """See `gipo_mc.ops.causal_attention`."""
    length = len(qkv_LBC)
    heads_LBGXD = qkv_LBC.unflatten(2, (groups, -1, 2 * cos_PR.shape[1]))
    query_LBHD, key_LBGD = heads_LBGXD[:, :, :, :-2].flatten(2, 3), heads_LBGXD[:, :, :, -2]
    wide = accumulator(qkv_LBC.dtype)
    cos, sin = (table_PR[:length, None, None].to(wide) for table_PR in (cos_PR, sin_PR))
    turned = (rotated(query_LBHD, cos, sin), rotated(key_LBGD, cos, sin), heads_LBGXD[:, :, :, -1])
    return attended(*turned, scale)


def attended(query_LBHD: Tensor, key_LBGD: Tensor, value_LBGD: Tensor, scale: float | None) -> Tensor:
    """Causal attention alone, by torch's kernel: [L, B, H, D] and twice [L, B, G, D] -> [L, B, H * D]."""
    query_BHLD, key_BGLD, value_BGLD = (x.permute(1, 2, 0, 3) for x in (query_LBHD, key_LBGD, value_LBGD))
    grouped = query_LBHD.shape[2] != key_LBGD.shape[2]
    out_BHLD = F.scaled_dot_product_attention(
        query_BHLD, key_BGLD, value_BGLD, is_causal=True, scale=scale, enable_gqa=grouped
    )
    return out_BHLD.permute(2, 0, 1, 3).flatten(2)


def norm_of_sum(x: Tensor, other: Tensor | None, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """See `gipo_mc.ops.norm_of_sum`."""
    total = x if other is None else x + other
    return total, F.rms_norm(total, weight_H.shape, weight_H, epsilon)


def gated_silu(both: Tensor) -> Tensor:
    """See `gipo_mc.ops.gated_silu`."""
    gate, up = both.chunk(2, dim=-1)
    if both.requires_grad and torch.is_grad_enabled():
        return F.silu(gate) * up
    return F.silu(gate).mul_(up)  # without another buffer
