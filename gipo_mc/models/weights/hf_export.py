"""A Megatron model as a Hugging Face folder that transformers loads: config.json and safetensors, sharded by size.

Each pipeline stage writes its own files, one rank a stage: shards of a parameter are gathered over the tensor group
one parameter at a time, and a file is written as soon as all of its tensors are there, so memory stays near one file.
Which tensor goes into which file follows from the shape alone; every rank knows it without asking.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gipo_mc.errors import ConfigError, StorageError
from gipo_mc.models.hf_files import Tokens, save_config
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import HeadKind, StageModel
from gipo_mc.models.weights.hf_load import INDEX
from gipo_mc.models.weights.table import EMBEDDING, OUTPUT, SCORE, stage_mappings, trunk_tensors
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.layout import Layout

#: Largest file, unless one tensor is larger.
SHARD_BYTES = 4 * 2**30


def export_hf_weights(
    model: StageModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    tokens: Tokens | None = None,
    shard_bytes: int = SHARD_BYTES,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write the model (all ranks call; `folder` is on a file system that they share).

    A language model becomes its family's ...ForCausalLM, a reward or value model its ...ForSequenceClassification with
    one label. Weights are converted to `dtype` (default: the model's). `tokens`: special ids, see `save_config`; the
    tokenizer is the caller's to save. Nothing is removed: a folder with weights of another model is the caller's to
    refuse. tell: how many tensors this rank has taken part in, of how many there are.
    Raises ConfigError for a critic with a group head, StorageError on every rank if a file cannot be written.
    """
    if model.head == "critic":
        raise ConfigError("A critic with a group head has no Hugging Face form: export the policy or the reward model.")
    folder, dtype = Path(folder), dtype or model.config.params_dtype
    plan = _plan(model.shape, model.head, model.layout, dtype, shard_bytes)
    failure = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        failure = f"{folder} cannot be created: {error}"
    if model.layout.data_rank == 0:
        failure = _write_stage(model, folder, dtype, plan, failure, tell)
    _raise_together(failure)
    if model.layout.is_main:
        failure = _write_rest(model, folder, dtype, plan, tokens)
    _raise_together(failure)


def _plan(
    shape: ModelShape, head: str, layout: Layout, dtype: torch.dtype, shard_bytes: int
) -> dict[str, dict[str, tuple[int, ...]]]:
    """File name -> tensor name -> shape, for all stages."""
    tensors = trunk_tensors(shape)
    if head == "lm" and not shape.tied:
        tensors[OUTPUT] = (shape.vocab_size, shape.hidden_size)
    elif head != "lm":
        tensors[SCORE] = (1, shape.hidden_size)
    files: list[dict[str, tuple[int, ...]]] = []
    size, stage = 0, -1
    for name, dims in tensors.items():
        owner, count = _stage(name, shape.layers, layout), torch.Size(dims).numel() * dtype.itemsize
        if owner != stage or size + count > shard_bytes:
            files.append({})
            size, stage = 0, owner
        files[-1][name] = dims
        size += count
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    return {f"model-{i:05d}-of-{len(files):05d}.safetensors": names for i, names in enumerate(files, start=1)}


def _stage(name: str, layers: int, layout: Layout) -> int:
    if name.startswith("model.layers."):
        chunk = layers // (layout.pipeline * layout.virtual)
        return int(name.split(".")[2]) // chunk % layout.pipeline
    return 0 if name == EMBEDDING else layout.pipeline - 1


def _write_stage(
    model: StageModel,
    folder: Path,
    dtype: torch.dtype,
    plan: dict[str, dict[str, Any]],
    failure: str | None,
    tell: Callable[[int, int], None],
) -> str | None:
    """Files of this stage, on its first tensor rank; the others take part in gathering even after a failure."""
    file_of = {name: file for file, names in plan.items() for name in names}
    pending: dict[str, dict[str, Tensor]] = {}
    for number, (name, tensor) in enumerate(whole_tensors(model)):
        tell(number * model.layout.pipeline, len(file_of))
        if model.layout.tensor_rank or failure or (name == EMBEDDING and not model.layout.is_first_stage):
            continue
        file = file_of[name]
        tensors = pending.setdefault(file, {})
        tensors[name] = tensor.to(dtype).contiguous().cpu()
        if len(tensors) == len(plan[file]):
            failure = _write(folder / file, pending.pop(file))
    assert failure or not pending, f"tensors without a complete file: {list(pending)}"
    return failure


@torch.no_grad()
def whole_tensors(model: StageModel) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face tensors of this stage, one parameter at a time; needs all tensor ranks."""
    parameters = dict(model.named_parameters())
    for name, mapping in stage_mappings(model).items():
        shards = [parameters[name].detach()]
        if model.layout.tensor > 1:
            gathered = gather_in_rank_order(shards[0], parallel_state.get_tensor_model_parallel_group())
            shards = list(gathered.unbind())
        yield from mapping.merge(shards).items()


def _write(path: Path, tensors: dict[str, Tensor]) -> str | None:
    """Write one file under a temporary name and rename it; what went wrong, if anything did."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        # A slice shares its storage with the whole gathered tensor, which safetensors refuses to write.
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        needed = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        return f"{path} cannot be written: {error} ({needed:,} bytes needed, {free:,} free)"
    return None


def _write_rest(
    model: StageModel, folder: Path, dtype: torch.dtype, plan: dict[str, dict[str, Any]], tokens: Tokens | None
) -> str | None:
    """Index, config.json and generation_config.json."""
    head: HeadKind = "lm" if model.head == "lm" else "reward"
    try:
        if len(plan) > 1:
            sizes = [torch.Size(dims).numel() * dtype.itemsize for names in plan.values() for dims in names.values()]
            content = {
                "metadata": {"total_size": sum(sizes)},
                "weight_map": {name: file for file, names in plan.items() for name in names},
            }
            (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_config(model.shape, folder, head, tokens, dtype=dtype)
    except OSError as error:
        return f"{folder} cannot be written: {error} ({shutil.disk_usage(folder).free:,} bytes free)"
    return None


def _raise_together(failure: str | None) -> None:
    """The first rank's failure as a StorageError on all ranks; waits for all of them."""
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    first = next((text for text in failures if text), None)
    if first:
        raise StorageError(first)
