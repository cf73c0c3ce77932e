"""Sums of gradients, and gathers of weights, that run while a pass computes.

Megatron's DistributedDataParallel cuts parameters into groups of buckets. It starts to sum a group's gradients when the
last of them is complete, in the backward pass of the last micro-batch, and with the distributed optimizer gathers a
group's new weights just before the forward pass reads them. What it leaves to its user is here: a parameter that a loss
does not reach, and everything that reads weights in other ways than through a module's forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gipo_mc.config import ParallelConfig


def sharing(parallel: ParallelConfig, device: torch.device) -> dict[str, bool]:
    """How data-parallel ranks share an optimizer step, as `Engine` takes it: what `auto` stands for here."""
    on_cuda = device.type == "cuda"
    shards = parallel.distributed_optimizer == "on" or (parallel.distributed_optimizer == "auto" and on_cuda)
    overlap = parallel.overlap == "on" or (parallel.overlap == "auto" and on_cuda and shards)
    return {"distributed_optimizer": shards, "overlap": overlap}


class Overlap:
    """Of one model. wrapped: the DistributedDataParallel of each of its chunks."""

    def __init__(self, wrapped: Sequence[Any]) -> None:
        self._groups: list[Any] = [group for chunk in wrapped for group in chunk.bucket_groups]
        for group in self._groups:
            # Megatron counts in a first pass how often each parameter becomes ready, and overlaps nothing then. Here
            # each does once, and `finish_gradients` holds that.
            group.golden_per_param_grad_ready_counts = dict.fromkeys(group.params, 1)
            group.is_first_batch = False
        config = wrapped[0].ddp_config
        self._gathers = config.use_distributed_optimizer and config.overlap_param_gather

    def finish_gradients(self) -> None:
        """Before Megatron waits for the sums: start those of groups with a parameter that no loss reached, whose
        gradient is zero. Raises RuntimeError where a gradient came after its sum had started."""
        for group in self._groups:
            if any(count > 1 for count in group.per_param_grad_ready_counts.values()):
                raise RuntimeError(
                    "A parameter's gradient was complete more than once in a backward pass, so a part of it missed the "
                    "sum over the data-parallel ranks: set parallel.overlap=off, and report this."
                )
            if group.grad_reduce_handle is None and not getattr(group, "grad_reduce_finished", False):
                group.start_grad_sync()

    def weights_changed(self) -> None:
        """This rank's share has new values: the next pass gathers all."""
        for group in self._groups:
            group.param_gather_dispatched = False

    def gather_weights(self) -> None:
        """Wait until all weights are here; a collective of the data-parallel ranks where a gather did not begin yet."""
        for group in self._groups if self._gathers else []:
            if group.param_gather_handle is not None or not group.param_gather_dispatched:
                group.start_param_sync(force_sync=True)
