"""Reductions whose result does not depend on the order in which ranks arrive, and rows that become everyone's.

All-reduce adds in an order that the library chooses. The few floats that decide something (group statistics, norms)
are gathered instead and added in rank order, so that every rank and every run gets the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.errors import GipoError
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.news import while_others_wait

T = TypeVar("T")


def gather_in_rank_order(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """[...] on each rank of `group` (same shape and dtype) -> [ranks, ...] on all of them."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.stack(parts)


def sum_in_rank_order(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum over the ranks of `group`, added in rank order; same shape and dtype."""
    parts = gather_in_rank_order(tensor, group)
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def broadcast_from_last_stage(
    tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, layout: Layout
) -> Tensor:
    """What the last pipeline stage holds, on every stage. Other stages pass None and name shape and dtype."""
    if layout.pipeline == 1:
        assert tensor is not None, "the only stage is the last stage: it holds the tensor"
        return tensor
    if layout.is_last_stage:
        assert tensor is not None and tuple(tensor.shape) == shape, "the last stage holds the tensor of the named shape"
        tensor = tensor.to(dtype).contiguous()
    else:
        tensor = torch.empty(shape, dtype=dtype, device=layout.device)
    dist.broadcast(
        tensor,
        src=parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return tensor


def replicate_rows(
    columns: dict[str, Tensor] | None, widths: dict[str, int], blocks: Sequence[Sequence[int]], layout: Layout
) -> dict[str, Tensor]:
    """Per-row results of the last stage of each replica -> all rows in global order, on every rank.

    columns: on the last stage, name -> float32 [own rows, width] (or [own rows] for width 0), in the order of this
        replica's block; None on other stages.
    widths: name -> trailing width, the same on all ranks; 0 for one number a row.
    blocks: the global rows of each replica, 0 to count - 1 in all; the same on all ranks.
    Returns name -> float32 [count, width] or [count]. One broadcast and one gather, whatever the number of columns.
    """
    with layout.active():
        return _replicate_rows(columns, widths, blocks, layout)


def _replicate_rows(
    columns: dict[str, Tensor] | None, widths: dict[str, int], blocks: Sequence[Sequence[int]], layout: Layout
) -> dict[str, Tensor]:
    own, longest = len(blocks[layout.data_rank]), max(len(block) for block in blocks)
    flat_widths = [max(1, width) for width in widths.values()]
    packed = None
    if columns is not None:
        packed = torch.cat(
            [columns[name].reshape(own, width) for name, width in zip(widths, flat_widths, strict=True)], dim=1
        ).float()
    packed = broadcast_from_last_stage(packed, (own, sum(flat_widths)), torch.float32, layout)
    if layout.data > 1:
        padded = packed.new_zeros(longest, sum(flat_widths))
        padded[:own] = packed
        gathered = gather_in_rank_order(padded, parallel_state.get_data_parallel_group())
        packed = torch.cat([gathered[rank, : len(block)] for rank, block in enumerate(blocks)])
    row_N = torch.tensor([row for block in blocks for row in block], device=packed.device)
    packed = torch.empty_like(packed).index_copy_(0, row_N, packed)
    parts = packed.split(flat_widths, dim=1)
    return {name: part if width else part.squeeze(1) for (name, width), part in zip(widths.items(), parts, strict=True)}


def any_rank(flag: bool) -> bool:
    """Does any rank say yes? The answer is the same on all of them."""
    if dist.get_world_size() == 1:
        return flag
    said = torch.tensor([int(flag)])
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return bool(said)


def on_main(work: Callable[[], T]) -> T:
    """Call `work` on rank 0 and return its value (picklable) on every rank; it may take longer than the time-out.

    An error of `work` is raised on every rank, so that no rank goes on alone: as it is where it is a GipoError, else
    as a RuntimeError that quotes it.
    """
    outcome: list[Any] = [None, None]

    def attempt() -> None:
        try:
            outcome[0] = work()
        except GipoError as error:
            outcome[1] = error
        except Exception as error:
            outcome[1] = RuntimeError(f"rank 0 failed: {type(error).__name__}: {error}")
            outcome[1].__cause__ = error

    while_others_wait(attempt)
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
