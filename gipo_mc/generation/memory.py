"""How much memory the KV cache may take."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from gipo_mc.errors import ConfigError
from gipo_mc.models.kv_cache import page_bytes, pages_for
from gipo_mc.models.stage import StageModel
from gipo_mc.parallel.layout import Layout

#: Of the memory that is free when it is asked for.
_SHARE = 0.5


#: Prompt tokens of one pass: enough to fill a GPU; on a CPU so few that what a layer makes of them stays in its caches.
_PREFILL_TOKENS = {"cuda": 8192, "cpu": 256}


@dataclass(frozen=True)
class Limits:
    """What one rank spends on generation.

    slots: rows that decode at a time; 0: all rows of the batch.
    prefill_tokens: prompt tokens of one pass; 0: what suits the device.
    kv_cache_gib: GiB of the KV cache on a rank; 0: half of the memory that is free.
    keep: on a GPU, keep the cache and the captured steps from batch to batch. Needs weights that stay where they are.
    """

    slots: int = 0
    prefill_tokens: int = 0
    kv_cache_gib: float = 0.0
    keep: bool = True

    def tokens_of_a_prefill(self, layout: Layout) -> int:
        """Prompt tokens of one pass on this rank's device."""
        return self.prefill_tokens or _PREFILL_TOKENS[layout.device.type]


def page_budget(limits: Limits, model: StageModel, longest: int) -> int:
    """Pages that the KV cache of this rank may have, the same on all ranks of a replica.

    Raises ConfigError, on all of them, if one sequence of `longest` tokens does not fit.
    """
    layout, each = model.layout, page_bytes(model.shape, model.layout, model.config.params_dtype)
    if limits.kv_cache_gib:
        have, told = limits.kv_cache_gib * 2**30, f"rollout.kv_cache_gib={limits.kv_cache_gib:g}"
    else:
        have = _least(_SHARE * _free_bytes(layout), layout)
        told = f"half of the {have / _SHARE / 2**30:.2f} GiB of memory that are free"
    pages, needed = int(have // each), pages_for(longest)
    if pages < needed:
        raise ConfigError(
            f"The KV cache cannot hold one sequence of {longest} tokens, which takes {needed * each / 2**30:.3g} GiB "
            f"on each rank; the limit is {told}. Raise rollout.kv_cache_gib, lower data.prompt_length or "
            "rollout.max_new_tokens, or spread the model with parallel.tensor and parallel.pipeline."
        )
    return pages


def _free_bytes(layout: Layout) -> float:
    """Free memory of this rank's device; on a CPU the ranks of one machine share what there is."""
    if layout.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(layout.device)
        cached = torch.cuda.memory_reserved(layout.device) - torch.cuda.memory_allocated(layout.device)
        return float(free + cached)
    return float(psutil.virtual_memory().available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _least(value: float, layout: Layout) -> float:
    """Over the ranks of a replica."""
    if layout.tensor * layout.pipeline == 1:
        return value
    least = torch.tensor(value, dtype=torch.float64, device=layout.device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=parallel_state.get_model_parallel_group())
    return float(least)
