"""Megatron's sharded checkpoints on disk: each rank writes its own shards, any layout reads them.

Reading builds tensors and plain values and runs nothing that a file says: the index is read by `shard_index`, the rest
by torch.load(weights_only=True). Megatron and torch would unpickle the index, and what the index calls objects.

The files are the same under every version of Megatron-core. (Its own saves put the common state among the objects since
0.19, which no earlier version reads.)
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, CheckpointingException, save_config
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, merge, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies import torch as torch_dist
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.utils import extract_sharded_base, force_all_tensors_to_non_fp8
from megatron.core.dist_checkpointing.validation import determine_global_metadata, validate_sharding_integrity
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from gipo_mc.errors import CheckpointError, StorageError
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.disk import write_synced
from gipo_mc.parallel.saving.files import Written, write_chunks
from gipo_mc.parallel.saving.patience import patient
from gipo_mc.parallel.saving.plan import plan
from gipo_mc.parallel.shard_index import read_index, write_index

_FORMAT = ("torch_dist", 1)


class WriteFailed(StorageError):
    """A rank could not write its part; raised on every rank. The text says why, by rank."""


def write(sharded: dict[str, Any], folder: Path) -> None:
    """Save sharded state in an existing, empty folder; every rank calls it. Raises WriteFailed."""
    whole = plan(sharded)
    on_main_or_fail(lambda: write_common(whole.common, folder))
    files = gathered(lambda: write_chunks(whole.own, folder, dist.get_rank()))
    on_main_or_fail(lambda: write_index(folder, whole.chunks, files))


def gathered(own: Callable[[], list[Written]]) -> list[Written]:
    """The files of all ranks on rank 0, those of this rank elsewhere; every rank calls it. Raises WriteFailed."""
    found: list[Written] = []
    all_or_fail(lambda: found.extend(own()))
    ranks: list[list[Written]] | None = [[]] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(found, ranks, group=patient())
    return [file for of_rank in ranks for file in of_rank] if ranks else found


def on_main_or_fail(work: Callable[[], Any]) -> Any:
    """`on_main`, with WriteFailed for what cannot be written."""

    def attempt() -> Any:
        try:
            return work()
        except OSError as problem:
            raise WriteFailed(f"rank 0: {_in_words(problem)}") from problem

    return on_main(attempt)


def all_or_fail(work: Callable[[], None]) -> None:
    """Call `work` on every rank; raises WriteFailed on all of them where one cannot read or write."""
    error = None
    try:
        work()
    except (OSError, RuntimeError, CheckpointException) as problem:
        # What a full disk raises depends on the writer: torch's CheckpointException around a RuntimeError, or either.
        error = _in_words(problem)
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error, group=patient())
    if found := [f"rank {rank}: {message}" for rank, message in enumerate(errors) if message]:
        raise WriteFailed("; ".join(found))


def _in_words(problem: BaseException) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())[-400:]


def write_common(common: dict[str, Any], folder: Path) -> None:
    """Write what is no part of a tensor, on one rank. Raises OSError."""
    # Through memory: torch.save on a full disk does not say that the disk is full.
    memory = io.BytesIO()
    torch.save(common, memory)
    write_synced(folder / COMMON_STATE_FNAME, memory.getvalue())
    save_config(CheckpointingConfig(*_FORMAT), str(folder))


def read(sharded: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill sharded state from a folder that `write` filled, in this or another layout; every rank calls it.

    Raises CheckpointError where the folder is damaged, or holds something else than tensors and plain values; the
    errors of Megatron and torch where it does not fit `sharded`.
    """
    # Of the modules of TransformerEngine, which nobody here uses; the others have nothing to store in them.
    _, sharded = extract_matching_values(
        sharded, lambda value: isinstance(value, ShardedObject) and value.key.endswith("._extra_state")
    )
    # Megatron's `load`, whose ways to read anything but the shards differ from version to version.
    force_all_tensors_to_non_fp8(sharded)
    sharded, own, factories = load_preprocess(sharded)
    loaded = _load_common(folder)
    merge(loaded, own)
    shards, _ = extract_sharded_base(sharded)
    validate_sharding_integrity(determine_global_metadata(shards)[1])
    merge(loaded, _load_shards(shards, folder))
    return apply_factory_merges(loaded, factories)  # type: ignore[no-any-return]


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The dtype of each tensor that `write` put into `folder`, by name."""
    return {name: entry.properties.dtype for name, entry in read_index(folder).state_dict_metadata.items()}  # type: ignore[union-attr]


def _load_common(folder: Path) -> dict[str, Any]:
    path = folder / COMMON_STATE_FNAME
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except Exception as error:  # an unpickler can raise anything
        raise CheckpointError(
            f"{path} cannot be read as tensors and plain values ({type(error).__name__}): the checkpoint is "
            "damaged, or somebody else wrote it."
        ) from error


def _load_shards(sharded: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What Megatron's strategy does, with a reader and a planner that unpickle nothing."""
    tensors = [value for value in nested_values(sharded) if isinstance(value, ShardedTensor)]
    named, flat, renamed = torch_dist._replace_state_dict_keys_with_sharded_keys(sharded)
    state = torch_dist.mcore_to_pyt_state_dict(named, True)
    planner = _Planner(
        shapes_validation_sharded_tensors=[value for value in tensors if not value.allow_shape_mismatch],
        allow_shape_mismatch_sharded_tensors={v.key: v for v in tensors if v.allow_shape_mismatch},
    )
    dcp.load_state_dict(state, _Reader(folder), process_group=patient(), planner=planner)  # type: ignore[arg-type]
    found = {key: torch_dist._unwrap_pyt_sharded_tensor(value) for key, value in state.items()}
    found = torch_dist._replace_sharded_keys_with_state_dict_keys(found, flat, renamed)  # type: ignore[arg-type]
    torch_dist._restore_dict_types(found, sharded)
    return found  # type: ignore[no-any-return]


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_index(Path(self.path))  # type: ignore[arg-type]


class _Planner(torch_dist.MCoreLoadPlanner):
    def load_bytes(self, read_item: Any, value: Any) -> NoReturn:
        raise CheckpointingException(f"{read_item.storage_index.fqn} is an object in the checkpoint, not a tensor")
