"""Optimizer state and sharded state as tensors: what an offloader moves, and what a save keeps of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from gipo_mc.parallel.optimizer import parts_of


def optimizer_tensors(optimizer: Any) -> Iterator[Tensor]:
    """Moments and weights of a Megatron optimizer, those weights included that are the model's own; not the counts of
    steps, which are single numbers."""
    for part in parts_of(optimizer):
        yield from (weight for group in part.optimizer.param_groups for weight in group["params"])
        for state in part.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor) and value.numel() > 1)


def to_host(sharded: dict[str, Any]) -> dict[str, Any]:
    """Megatron's sharded state with copies of its tensors, on the host."""

    def copied(value: Any) -> Any:
        if isinstance(value, ShardedTensor | ShardedTensorFactory):
            value.data = value.data.detach().to("cpu", copy=True)
        return value

    return dict_list_map_outplace(copied, sharded)  # type: ignore[no-any-return]
