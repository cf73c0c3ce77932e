"""Two ops over a paged key-value cache, for generation: write a token's key and value, and attend to what is there.

A pool [pages, G, 16, D] holds the keys, another the values, of one layer. A slot is a sequence that is generated; row s
of the page table lists its pages, so that position t of slot s is `pool[page_table[s, t // 16], :, t % 16]`. Slots may
share pages. What pages hold beyond a slot's length is never looked at. No gradients.
`gipo_mc.ops.reference_attention` holds the eager definitions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gipo_mc.ops import checks, native
from gipo_mc.ops import reference_attention as reference

PAGE = 16  # kPage of csrc/paged_cache.h: positions of a page
WIDEST_HEAD = 256  # kWidestHead there
CHUNK = 128  # kChunk of csrc/paged_attention.h: positions that are reduced at a time
_CACHED = (torch.float32, torch.bfloat16, torch.float16)


def _cache(key_pool: Tensor, value_pool: Tensor, page_table_SP: Tensor) -> tuple[int, ...]:
    """What every kernel takes of a cache."""
    pages, groups, _, width = key_pool.shape
    pools = (native.address(key_pool), native.address(value_pool), pages, groups, width)
    return *pools, native.address(page_table_SP), *page_table_SP.shape, page_table_SP.stride(0)


def _fake_queries(qkv_NC: Tensor, *inputs: Any) -> Tensor:
    _, groups, _, width = inputs[5].shape
    heads = qkv_NC.shape[1] // width - 2 * groups
    return qkv_NC.new_empty((qkv_NC.shape[0], heads, width))


@native.op("rotate_and_append", _fake_queries, mutates=("key_pool", "value_pool"))
def _rotate_and_append(
    qkv_NC: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    slot_N: Tensor,
    position_N: Tensor,
    page_table_SP: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
) -> Tensor:
    tables = [x.contiguous() for x in (cos_PR, sin_PR)]
    vectors = [x.contiguous() for x in (slot_N, position_N)]
    query_NHD = _fake_queries(qkv_NC, cos_PR, sin_PR, slot_N, position_N, page_table_SP, key_pool)
    native.call(
        "rotate_and_append",
        qkv_NC.device,
        *(native.address(qkv_NC), native.code(qkv_NC), qkv_NC.shape[0], qkv_NC.stride(0)),
        *(query_NHD.shape[1] // key_pool.shape[1], *map(native.address, tables), cos_PR.shape[0]),
        *map(native.address, vectors),
        *_cache(key_pool, value_pool, page_table_SP),
        native.address(query_NHD),
    )
    return query_NHD


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
        H / G query heads, then the key, then the value, as Megatron's linear_qkv gives them. D even, at most 256.
    cos_PR, sin_PR: float32 [positions, D / 2]; the two coordinates of a rotation are d and d + D / 2.
    slot_N, position_N: int64 [N], where each token belongs; position -1: nothing is written, the query is zeros. No two
        tokens have the same place.
    page_table_SP: int32 [slots, pages of a slot], any row stride.
    key_pool, value_pool: [pages, G, 16, D] of the dtype of qkv_NC, contiguous; written.

    Returns the rotated queries [N, H, D], computed in float32 and rounded once.
    Raises TypeError or ValueError for wrong dtypes, shapes, layouts; IndexError on the CPU for slots, positions and
    pages that do not exist. On CUDA these are not looked at: such a token is taken as one of position -1.
    """
    op = "rotate_and_append"
    _check_cache(op, key_pool, value_pool, page_table_SP, "qkv_NC", qkv_NC)
    groups, width = key_pool.shape[1], key_pool.shape[3]
    columns = qkv_NC.shape[1] if qkv_NC.dim() == 2 else 0
    if columns < 3 * groups * width or columns % (groups * width):
        raise ValueError(
            f"{op}: qkv_NC has shape {list(qkv_NC.shape)}; give [N, {groups} * (H / {groups} + 2) * {width}], as the "
            f"pools have {groups} heads of {width}."
        )
    if width % 2 or qkv_NC.stride(1) != 1:
        raise ValueError(
            f"{op}: the head dimension is {width} and the strides of qkv_NC are {qkv_NC.stride()}; the first must be "
            "even and the last stride 1."
        )
    if sin_PR.shape != cos_PR.shape:
        raise ValueError(f"{op}: cos_PR has shape {list(cos_PR.shape)}, but sin_PR {list(sin_PR.shape)}.")
    rows, device = qkv_NC.shape[0], qkv_NC.device
    for name, table_PR in (("cos_PR", cos_PR), ("sin_PR", sin_PR)):
        checks.like(op, name, table_PR, (cos_PR.shape[0], width // 2), torch.float32, device)
    checks.like(op, "slot_N", slot_N, (rows,), torch.int64, device)
    checks.like(op, "position_N", position_N, (rows,), torch.int64, device)
    inputs = (qkv_NC.detach(), cos_PR, sin_PR, slot_N, position_N, page_table_SP, key_pool, value_pool)
    return reference.rotate_and_append(*inputs) if native.use_reference() else _rotate_and_append(*inputs)


@native.op("paged_attention", lambda query_NHD, *_: query_NHD.new_empty(query_NHD.flatten(1).shape))
def _paged_attention(
    query_NHD: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
    page_table_SP: Tensor,
    slot_N: Tensor,
    length_N: Tensor,
    scale: float,
) -> Tensor:
    query_NHD = query_NHD.contiguous()
    vectors = [x.contiguous() for x in (slot_N, length_N)]
    rows, heads, width = query_NHD.shape
    out_NC = query_NHD.new_empty((rows, heads * width))
    work = []
    if query_NHD.device.type == "cuda":  # what the chunks of all positions that a slot may have are reduced to
        chunks = -(-page_table_SP.shape[1] * PAGE // CHUNK)
        part = -(-width // 8) * 8 + 4  # part_size of csrc/paged_attention.h
        work.append(query_NHD.new_empty((rows, heads, chunks, part), dtype=torch.float32))
    native.call(
        "paged_attention",
        query_NHD.device,
        *(native.address(query_NHD), native.code(query_NHD), rows, heads // key_pool.shape[1]),
        *(*map(native.address, vectors), scale),
        *_cache(key_pool, value_pool, page_table_SP),
        *map(native.address, (out_NC, *work)),
    )
    return out_NC


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

    query_NHD: [N, H, D], float32, bfloat16 or float16; H is a multiple of G, and each H / G query heads behind one
        another share a key head. D at most 256; multiples of 16 are fast.
    key_pool, value_pool: [pages, G, 16, D] of the same dtype, contiguous.
    page_table_SP: int32 [slots, pages of a slot], any row stride.
    slot_N, length_N: int64 [N]: query n sees positions 0 .. length_N[n] - 1 of slot_N[n]; length 0: zeros.
    scale: of the products, finite.

    Returns [N, H * D], accumulated in float32 and rounded once. A row depends on its own query and on what it sees
    only: not on the other rows, on the pages' numbers or, on the CPU, on the number of threads.
    Raises TypeError or ValueError for wrong dtypes, shapes, layouts; IndexError on the CPU for slots, lengths and pages
    that do not exist. On CUDA these are not looked at: the row is NaN.
    """
    op = "paged_attention"
    _check_cache(op, key_pool, value_pool, page_table_SP, "query_NHD", query_NHD)
    groups, width = key_pool.shape[1], key_pool.shape[3]
    shape = query_NHD.shape
    if len(shape) != 3 or shape[2] != width or shape[1] == 0 or shape[1] % groups:
        raise ValueError(
            f"{op}: query_NHD has shape {list(shape)}; give [N, a multiple of {groups}, {width}], as the pools have "
            f"{groups} heads of {width}."
        )
    checks.like(op, "slot_N", slot_N, (shape[0],), torch.int64, query_NHD.device)
    checks.like(op, "length_N", length_N, (shape[0],), torch.int64, query_NHD.device)
    checks.number(op, "scale", scale)
    inputs = (query_NHD.detach(), key_pool, value_pool, page_table_SP, slot_N, length_N, scale)
    return reference.paged_attention(*inputs) if native.use_reference() else _paged_attention(*inputs)


def _check_cache(
    op: str, key_pool: Tensor, value_pool: Tensor, page_table_SP: Tensor, name: str, tensor: Tensor
) -> None:
    """Pools [pages, G, 16, D] like one another and a page table, of the dtype and on the device of the input `name`."""
    checks.floats(op, name, tensor)
    if tensor.dtype not in _CACHED:
        raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; give float32, bfloat16 or float16.")
    if not isinstance(key_pool, Tensor) or key_pool.dim() != 4 or key_pool.shape[2] != PAGE:
        raise ValueError(
            f"{op}: key_pool has shape {list(getattr(key_pool, 'shape', ()))}; give [pages, heads, {PAGE}, width]."
        )
    shape = tuple(key_pool.shape)
    if shape[1] == 0 or not 0 < shape[3] <= WIDEST_HEAD:
        raise ValueError(
            f"{op}: key_pool has shape {list(shape)}; heads and width must be positive, the width at most "
            f"{WIDEST_HEAD}."
        )
    for pool_name, pool in (("key_pool", key_pool), ("value_pool", value_pool)):
        checks.like(op, pool_name, pool, shape, tensor.dtype, tensor.device)
        if not pool.is_contiguous():
            raise ValueError(f"{op}: {pool_name} has strides {pool.stride()}; it must be contiguous.")
    if page_table_SP.dim() != 2 or page_table_SP.stride(1) != 1:
        raise ValueError(
            f"{op}: page_table_SP has shape {list(page_table_SP.shape)} and strides {page_table_SP.stride()}; give "
            "[slots, pages of a slot] with a last stride of 1."
        )
    checks.like(op, "page_table_SP", page_table_SP, tuple(page_table_SP.shape), torch.int32, tensor.device)
