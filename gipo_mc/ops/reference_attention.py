"""Eager references of the two ops over a paged key-value cache; see `gipo_mc.ops.reference` for what references are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gipo_mc.ops.checks import accumulator


@torch.no_grad()
def rotate_and_append(
    qkv_NC: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    slot_N: Tensor,
    position_N: Tensor,
    page_table_SP: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
) -> Tensor:
    """See `gipo_mc.ops.rotate_and_append`."""
    groups, page, width = key_pool.shape[1:]
    heads_NGXD = qkv_NC.unflatten(1, (groups, -1, width))
    query_NGJD, key_NGD, value_NGD = heads_NGXD[:, :, :-2], heads_NGXD[:, :, -2], heads_NGXD[:, :, -1]

    written_N = position_N >= 0
    at_N = position_N.clamp(min=0)
    cos_NR, sin_NR = (table_PR[at_N].to(accumulator(qkv_NC.dtype)) for table_PR in (cos_PR, sin_PR))
    query_NGJD = rotated(query_NGJD, cos_NR[:, None, None], sin_NR[:, None, None])
    query_NGJD = query_NGJD.masked_fill(~written_N[:, None, None, None], 0.0)
    key_NGD = rotated(key_NGD, cos_NR[:, None], sin_NR[:, None])

    page_n = page_table_SP[slot_N[written_N], at_N[written_N] // page].long()
    key_pool[page_n, :, at_N[written_N] % page] = key_NGD[written_N]
    value_pool[page_n, :, at_N[written_N] % page] = value_NGD[written_N]
    return query_NGJD.flatten(1, 2)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the last dimension, whose halves are the two coordinates (Su et al., arXiv 2104.09864)."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


@torch.no_grad()
def paged_attention(
    query_NHD: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
    page_table_SP: Tensor,
    slot_N: Tensor,
    length_N: Tensor,
    scale: float,
) -> Tensor:
    """See `gipo_mc.ops.paged_attention`."""
    groups, page, _ = key_pool.shape[1:]
    rows, heads, _ = query_NHD.shape
    if rows == 0:
        return query_NHD.flatten(1)
    wide = accumulator(query_NHD.dtype)
    pages = math.ceil(int(length_N.max()) / page)
    seen_NL = torch.arange(pages * page, device=length_N.device) < length_N[:, None]
    # Pages beyond a length may hold anything, and their entries of the table may be of no page.
    page_NP = page_table_SP[slot_N, :pages].long().where(seen_NL[:, ::page], 0)

    def cached(pool: Tensor) -> Tensor:
        """[N, G, L, D], zeros where nothing is seen."""
        tiles_NPGTD = pool[page_NP].to(wide)
        return tiles_NPGTD.transpose(1, 2).flatten(2, 3).masked_fill(~seen_NL[:, None, :, None], 0.0)

    query_NGJD = query_NHD.to(wide).unflatten(1, (groups, heads // groups))
    score_NGJL = query_NGJD @ cached(key_pool).transpose(2, 3) * scale
    score_NGJL = score_NGJL.masked_fill(~seen_NL[:, None, None], -torch.inf)
    weight_NGJL = score_NGJL.softmax(-1).masked_fill(length_N[:, None, None, None] == 0, 0.0)
    return (weight_NGJL @ cached(value_pool)).flatten(1).to(query_NHD.dtype)
