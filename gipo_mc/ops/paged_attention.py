"""Two ops over a paged key-value cache, for generation: write a token's key and value, and attend to what is there.

A pool [pages, G, 16, D] holds the keys, another the values, of one layer. A slot is a sequence that is generated; row s
of the page table lists its pages, so that position t of slot s is `pool[page_table[s, t // 16], :, t % 16]`. Slots may
share pages. `gipo_mc.ops.reference_attention` holds the eager definitions. No gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gipo_mc.ops import checks, native
from gipo_mc.ops import reference_attention as reference

PAGE = 16  # kPage of csrc/paged_attention.h: positions of a page
_CACHED = (torch.float32, torch.bfloat16, torch.float16)


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
    """Rotates queries and keys of N tokens, and writes keys and values into the pools.

    qkv_NC: [N, G * (H / G + 2) * D], float32, bfloat16 or float16, any row stride: for each of the G key heads its
        H / G query heads, then the key, then the value, as Megatron's linear_qkv gives them.
    cos_PR, sin_PR: float32 [positions, D / 2]. The two coordinates of a rotation are d and d + D / 2.
    slot_N, position_N: int64 [N], where each token belongs; position -1: nothing is written, the query is zeros. No two
        tokens have the same place.
    page_table_SP: int32 [slots, pages of a slot]. key_pool, value_pool: [pages, G, 16, D], contiguous; written.

    Returns the rotated queries [N, H, D], computed in float32 and rounded once.
    """
    return reference.rotate_and_append(
        qkv_NC, cos_PR, sin_PR, slot_N, position_N, page_table_SP, key_pool, value_pool
    )


def paged_attention(
    query_NHD: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
    page_table_SP: Tensor,
    slot_N: Tensor,
    length_N: Tensor,
    scale: float,
) -> Tensor:
    """softmax(scale q k) v of each query over the first positions of its slot.

    query_NHD: [N, H, D]; H is a multiple of G, and query heads j G / H share key head j. Float32, bfloat16 or float16.
    key_pool, value_pool: [pages, G, 16, D] of the same dtype, contiguous. page_table_SP: int32 [slots, pages of a slot].
    slot_N, length_N: int64 [N]: query n sees positions 0 .. length_N[n] - 1 of slot_N[n]; length 0: zeros.

    Returns [N, H * D], accumulated in float32 and rounded once.
    """
    return reference.paged_attention(query_NHD, key_pool, value_pool, page_table_SP, slot_N, length_N, scale)
