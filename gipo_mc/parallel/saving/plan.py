"""Which rank writes which chunk of a checkpoint.

Every rank tells what it holds. A chunk that several hold, as data-parallel ranks hold the same weights, is written by
one of them: the one that has least to write so far, in an order that depends on nothing but sizes and names. So ranks
write about as much each, and the same state in the same layout gives the same files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from torch import Tensor

from gipo_mc.parallel.saving.patience import patient


class Chunk(NamedTuple):
    """A box of a global tensor. dtype: None for an object that is no tensor, which is one chunk."""

    key: str
    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    bytes: int


#: The tensor of a chunk on this rank, or the bytes of an object.
Content = Tensor | bytes


@dataclass(frozen=True)
class Plan:
    """chunks: of all ranks, each once, in order. own: those that this rank writes, with their content. needed: bytes of
    all tensors. common: what is no part of a tensor, as this rank has it."""

    chunks: list[Chunk]
    own: list[tuple[Chunk, Content]]
    needed: int
    common: dict[str, Any]


def plan(sharded: dict[str, Any]) -> Plan:
    """Who writes what of Megatron's sharded state; every rank calls it. The content is the state's own memory."""
    parts, common = save_preprocess(sharded, validate_access_integrity=False)
    held = dict(_held(parts))
    ranks: list[list[Chunk]] = [[]] * dist.get_world_size()
    dist.all_gather_object(ranks, list(held), group=patient())
    writers = assigned(ranks)
    check_whole(writers)
    own = [(chunk, held[chunk]) for chunk, rank in writers.items() if rank == dist.get_rank()]
    return Plan(sorted(writers, key=_order), own, sum(chunk.bytes for chunk in writers if chunk.dtype), common)


def assigned(held: Sequence[Sequence[Chunk]]) -> dict[Chunk, int]:
    """Chunks that each rank holds -> the rank that writes each, so that all write about as many bytes.

    Chunks with fewer holders and larger ones come first: what is left then fills the gaps.
    """
    holders: dict[Chunk, list[int]] = {}
    for rank, chunks in enumerate(held):
        for chunk in chunks:
            holders.setdefault(chunk, []).append(rank)
    load, found = [0] * len(held), {}
    for chunk in sorted(holders, key=lambda c: (len(holders[c]), -c.bytes, *_order(c))):
        rank = min(holders[chunk], key=lambda r: (load[r], r))
        load[rank] += chunk.bytes
        found[chunk] = rank
    return found


def check_whole(chunks: dict[Chunk, int]) -> None:
    """Do the chunks of each tensor fill it? Raises RuntimeError: what is saved would not be the model."""
    stated: dict[str, set[Any]] = {}
    filled: dict[str, int] = {}
    for chunk in chunks:
        stated.setdefault(chunk.key, set()).add((chunk.shape, chunk.dtype))
        filled[chunk.key] = filled.get(chunk.key, 0) + prod(chunk.sizes)
    for key, found in stated.items():
        shape, dtype = next(iter(found))
        if len(found) > 1 or (dtype is not None and filled[key] != prod(shape)):
            raise RuntimeError(f"The ranks do not agree on {key}: {found}, of which they hold {filled[key]} elements.")


def _order(chunk: Chunk) -> tuple[str, tuple[int, ...]]:
    return chunk.key, chunk.offset


def _held(parts: dict[str, Any]) -> Any:
    for value in nested_values(parts):
        if isinstance(value, ShardedTensor):
            sizes = (1,) * value.prepend_axis_num + tuple(value.local_shape)
            yield (
                Chunk(
                    value.key, tuple(value.global_offset), sizes, tuple(value.global_shape), value.dtype,
                    value.data.numel() * value.data.element_size(),
                ),
                value.data.detach().reshape(sizes),
            )  # fmt: skip
        elif isinstance(value, ShardedObject) and is_main_replica(value.replica_id):
            memory = io.BytesIO()
            torch.save([value.data], memory)
            content = memory.getvalue()
            yield Chunk(value.unique_key, (), (), (), None, len(content)), content
