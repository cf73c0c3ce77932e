"""The distributed optimizer's state for a save, as each rank holds it.

Megatron's `fully_reshardable` gathers whole moments first: 12 bytes a parameter on each rank of a data-parallel group,
and as much again on the way. Here the names and shapes in the checkpoint are those of that format; only the pieces that
a tensor is stored in are each rank's own, and a reader puts pieces together wherever they were cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from gipo_mc.parallel.saving.boxes import boxes

FORMAT = "fully_reshardable"
_KEYS = ("param", "exp_avg", "exp_avg_sq")


def distributed_part(optimizer: MegatronOptimizer) -> DistributedOptimizer | None:
    """The distributed optimizer, where that is what the engine has and this rank has parameters."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return parts[0] if len(parts) == 1 and isinstance(parts[0], DistributedOptimizer) else None


def sharded_pieces(optimizer: DistributedOptimizer, model_state: dict[str, Any]) -> dict[str, Any]:
    """What `optimizer.sharded_state_dict` returns for a save, with this rank's pieces in place of whole tensors.

    model_state: the sharded state of the model, of all its chunks. The pieces are views: nothing is copied.
    """
    tensors, _ = extract_sharded_tensors_and_factories(model_state)
    places = {value.data: value for value in nested_values(tensors)}
    pieces: dict[int, ShardedTensor] = {}
    for buffers in optimizer.gbuf_ranges:
        for buckets in buffers.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    state = optimizer._get_main_param_and_optimizer_states(parameter)
                    for key in _KEYS:
                        for piece in _pieces(places[parameter], key, state[key], ranges["param"].start):
                            pieces[len(pieces)] = piece
    return {**optimizer.state_dict(), "param_state": pieces, "param_state_sharding_type": FORMAT}


def _pieces(place: ShardedTensor | ShardedTensorFactory, key: str, held: Tensor, begin: int) -> Iterator[ShardedTensor]:
    """held: elements `begin` and on of the flattened parameter that `place` puts into the checkpoint."""
    # The parameter's shape without its memory: where its parts lie in it is all that is asked.
    shadow = place.data.detach().to("meta", held.dtype)
    name = f"optimizer.state.{key}.{place.key}"
    if isinstance(place, ShardedTensorFactory):
        built = replace(place, key=name, data=shadow).build()
    else:
        built = replace(place, key=name, data=shadow, dtype=held.dtype)
    for part in nested_values({"built": built}):
        # Data-parallel ranks hold different pieces; of other copies (of what tensor-parallel ranks share, of tied
        # embeddings) the first is written.
        if is_main_replica((*part.replica_id[:-1], 0)):
            yield from _of_part(part, held, begin)


def _of_part(part: ShardedTensor, held: Tensor, begin: int) -> Iterator[ShardedTensor]:
    assert part.data.is_contiguous(), "parts of a parameter are rows of it"
    start = int(part.data.storage_offset())  # of the part in the parameter
    first, end = max(begin, start), min(begin + held.numel(), start + part.data.numel())
    ahead = part.prepend_axis_num
    for box in boxes(tuple(part.local_shape), first - start, end - start):
        at = start + box.begin - begin
        elements = prod(box.sizes)
        offset = tuple(a + b for a, b in zip(part.global_offset, (0,) * ahead + box.offset, strict=True))
        yield replace(
            part,
            data=held[at : at + elements].view(box.sizes),
            local_shape=box.sizes,
            global_offset=offset,
            axis_fragmentations=None,
            replica_id=(0,) * len(part.replica_id),
        )
