"""Keys and values of the tokens that a stage has seen, in pages that are handed out as they are needed.

A page holds the keys (or values) of `PAGE` positions of one sequence, for the key-value heads that the rank reads. A
sequence owns whole pages and shares the full pages of its prompt with other responses to it, so what is held is what
was seen, up to a page a sequence. Which page belongs to whom is decided by `gipo_mc.generation.pages`; here are the
tensors, one layout for prefill and decode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gipo_mc.models.shape import ModelShape
from gipo_mc.parallel.layout import Layout

#: Positions of a page.
PAGE = 16


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens of one sequence."""
    return -(-tokens // PAGE)


def page_bytes(shape: ModelShape, layout: Layout, dtype: torch.dtype) -> int:
    """Bytes of one page on one rank, over the layers of its stage, keys and values."""
    layers, heads = shape.layers // layout.pipeline, shape.kv_heads_on(layout.tensor)
    return 2 * layers * heads * PAGE * shape.head_dim * dtype.itemsize


class KVCache:
    """The pages of one rank.

    pools: for each layer of the stage (keys, values), each [pages, kv heads of the rank, PAGE, head_dim]. Nothing is
        written before it is used, so on a CPU memory is taken as the pages are.
    page_table_SP: int32 [slots, pages of the longest sequence], what holds positions p * PAGE to (p + 1) * PAGE - 1 of
        the sequence in a slot; -1 where there is none.
    """

    def __init__(
        self, shape: ModelShape, layout: Layout, *, pages: int, slots: int, longest: int, dtype: torch.dtype
    ) -> None:
        size = (pages, shape.kv_heads_on(layout.tensor), PAGE, shape.head_dim)
        self.pools: list[tuple[Tensor, Tensor]] = [
            (torch.empty(size, dtype=dtype, device=layout.device), torch.empty(size, dtype=dtype, device=layout.device))
            for _ in range(shape.layers // layout.pipeline)
        ]
        self.page_table_SP = torch.full((slots, pages_for(longest)), -1, dtype=torch.int32, device=layout.device)

        self.pages, self.slots, self.longest = pages, slots, longest

    def give(self, slots: Sequence[int], pages: Sequence[Sequence[int]]) -> None:
        """Let the sequences in these slots live in these pages, in the order of their positions."""
        width = self.page_table_SP.shape[1]
        rows = torch.tensor([[*row, *[-1] * (width - len(row))] for row in pages], dtype=torch.int32)
        self.page_table_SP[torch.tensor(slots, device=self.page_table_SP.device)] = rows.to(self.page_table_SP.device)

    def copy(self, sources: Sequence[int], targets: Sequence[int], layers: range) -> None:
        """The content of pages `sources` into pages `targets`, in these layers."""
        device = self.page_table_SP.device
        source, target = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        for pool in (pool for layer in layers for pool in self.pools[layer]):
            pool[target] = pool[source]

    def read(self, layer: int, slots: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions 0 to length - 1 in these slots, [slots, kv heads, length, head_dim] each,
        copied."""
        slot_S = torch.tensor(slots, device=self.page_table_SP.device)
        page_SP = self.page_table_SP[slot_S, : pages_for(length)]
        keys, values = (pool[page_SP].transpose(1, 2).flatten(2, 3)[:, :, :length] for pool in self.pools[layer])
        return keys, values
