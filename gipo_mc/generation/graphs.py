"""Decoding steps as CUDA graphs: one launch for a position instead of some hundreds.

A step reads and writes tensors at fixed addresses, so a captured one can be replayed as long as weights, cache and rows
stay where they are. It is captured once for each number of rows, rounded up; the rest is filled with a row that stands
for nothing. Nothing in a step may wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Takes row_n and slot_n, int64 [n].
Step = Callable[[Tensor, Tensor], None]


def rounded_up(count: int, most: int) -> int:
    """The next power of two up to 8, or multiple of 8, but at most `most`."""
    size = 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8
    return min(size, most)


class CapturedStep:
    """`step` for any number of rows up to `slots`, captured when a number is first met.

    nobody: the row that fills up a step.
    """

    def __init__(self, step: Step, slots: int, nobody: int) -> None:
        self._step, self._slots, self._nobody = step, slots, nobody
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Run the step for these rows in these slots."""
        size = rounded_up(len(rows), self._slots)
        fill = size - len(rows)
        row_n = torch.tensor([*rows, *[self._nobody] * fill])
        slot_n = torch.tensor([*slots, *[0] * fill])
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        graph, its_row_n, its_slot_n = self._graphs[size]
        its_row_n.copy_(row_n)
        its_slot_n.copy_(slot_n)
        graph.replay()

    def _capture(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """Warm up and capture with nobody's row alone, so that neither changes anything."""
        row_n = torch.full((size,), self._nobody, device="cuda")
        slot_n = torch.zeros(size, dtype=torch.int64, device="cuda")
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._step(row_n, slot_n)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(row_n, slot_n)
        return graph, row_n, slot_n
