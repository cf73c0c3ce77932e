"""Decode attention for benchmarks/kernels/kernels.py: one query of each slot over a paged cache, and what else does it.

Every implementation gets the same numbers. Those that know no pages get caches [N, G, L, D] that are laid out for them,
untimed: what gathering the pages would cost at every token is not counted against them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.measure import Case, NotRun, Rival, Tensors
from benchmarks.kernels.rivals import module
from gipo_mc.ops import paged_attention, reference_attention
from gipo_mc.ops.paged_attention import PAGE

_COMPARED = 4  # slots that are compared with float64


def attention_case(
    slots: int, length: int, heads: int, groups: int, width: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """`slots` queries of `heads` heads over 3/4 `length` to `length` positions, pages in scrambled order."""
    generator = torch.Generator(device).manual_seed(5)
    pages = -(-length // PAGE)
    order = torch.randperm(slots * pages, generator=generator, device=device)
    pools = (slots * pages, groups, PAGE, width)
    given: dict[str, Any] = {
        "query_NHD": torch.randn(slots, heads, width, generator=generator, device=device).to(dtype),
        "key_pool": torch.empty(pools, dtype=dtype, device=device).normal_(generator=generator),
        "value_pool": torch.empty(pools, dtype=dtype, device=device).normal_(generator=generator),
        "page_table_SP": order.view(slots, pages).int(),
        "slot_N": torch.arange(slots, device=device),
        "length_N": length - torch.arange(slots, device=device) * (length // 4) // max(slots - 1, 1),
    }
    positions = int(given["length_N"].sum())

    @cache
    def truth(_: frozenset[str]) -> Tensors:
        some, table_SP = slice(0, _COMPARED), given["page_table_SP"][:_COMPARED].long()
        own = torch.arange(table_SP.numel(), device=device).view(table_SP.shape)  # the pages of these slots alone
        exact = {
            "query_NHD": given["query_NHD"][some].double(),
            **{name: given[name][table_SP.flatten()].double() for name in ("key_pool", "value_pool")},
            "page_table_SP": own.int(),
            "slot_N": given["slot_N"][some],
            "length_N": given["length_N"][some],
        }
        return {"out": reference_attention.paged_attention(**exact, scale=width**-0.5)}

    size = given["query_NHD"].element_size()
    return Case(
        "paged_attention",
        dtype,
        {"N": slots, "L": length, "H": heads, "G": groups, "D": width, "positions": positions},
        device,
        lambda: given,
        (),
        {},
        truth,
        (2 * positions * groups * width * size + 2 * given["query_NHD"].nbytes, 0),
        rivals(given, device),
        ("graph", "wall") if device.type == "cuda" else ("wall",),
    )


def rivals(given: Tensors, device: torch.device) -> list[Rival | NotRun]:
    """Every implementation, ours first. They return [N, H * D] as `out`."""
    scale = given["query_NHD"].shape[2] ** -0.5
    return [
        Rival("gipo_mc", lambda x: {"out": paged_attention(**x, scale=scale)}, ours=True),
        Rival(
            "reference",
            lambda x: {"out": reference_attention.paged_attention(**x, scale=scale)},
            "gipo_mc.ops.reference_attention, which gathers the pages first",
        ),
        padded(given, scale),
        flash_attention(given, scale, device),
    ]


def laid_out(pool: Tensor, page_table_SP: Tensor) -> Tensor:
    """[N, G, L, D]: the pages of each slot behind one another."""
    return pool[page_table_SP.long()].transpose(1, 2).flatten(2, 3)


def padded(given: Tensors, scale: float) -> Rival:
    """torch's attention over caches of equal length with a mask, as generation without pages has them."""

    @cache
    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        keys, values = (laid_out(given[name], given["page_table_SP"]) for name in ("key_pool", "value_pool"))
        seen_NL = torch.arange(keys.shape[2], device=keys.device) < given["length_N"][:, None]
        return keys, values, seen_NL[:, None, None]

    def forward(x: Tensors) -> Tensors:
        keys, values, seen = inputs()
        query = x["query_NHD"][:, :, None]
        out = F.scaled_dot_product_attention(query, keys, values, seen, scale=scale, enable_gqa=True)
        return {"out": out.flatten(1)}

    return Rival("scaled_dot_product_attention", forward, "contiguous caches, padded, with a mask; laid out untimed")


def flash_attention(given: Tensors, scale: float, device: torch.device) -> Rival | NotRun:
    """flash-attention's call for decoding, over caches [N, L, G, D]; its own pages hold 256 positions."""
    name, found = "flash_attn_with_kvcache", module("flash_attn")
    if isinstance(found, str) or device.type != "cuda":
        return NotRun(name, found if isinstance(found, str) else "it needs a GPU")

    @cache
    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        keys, values = (
            laid_out(given[pool], given["page_table_SP"]).transpose(1, 2).contiguous()
            for pool in ("key_pool", "value_pool")
        )
        return keys, values, given["length_N"].int()

    def forward(x: Tensors) -> Tensors:
        keys, values, length_N = inputs()
        out = found.flash_attn_with_kvcache(
            x["query_NHD"][:, None], keys, values, cache_seqlens=length_N, softmax_scale=scale, causal=True
        )
        return {"out": out.flatten(1)}

    return Rival(name, forward, "contiguous caches, laid out untimed")
