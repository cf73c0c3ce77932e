"""Where this rank stands in the data x pipeline x tensor grid, and which rows of a batch are its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch


class ProcessGroups(Protocol):
    """Groups that are not always those that Megatron finds (`megatron.second_layout`)."""

    def active(self) -> AbstractContextManager[None]:
        """Let Megatron find these."""
        ...


@dataclass(frozen=True)
class Layout:
    """The grid (pipeline, data, tensor), tensor innermost, as Megatron orders it ("tp-dp-pp" with cp = ep = 1).

    `sequence` is sequence parallelism inside the tensor group; `device` holds this rank's tensors; `virtual`: chunks of
    layers on each pipeline rank, more than 1 for an interleaved pipeline.
    beside: another layout of the same ranks, for frozen models. groups: its process groups; None: those that Megatron
    finds.
    """

    world_size: int
    rank: int
    tensor: int
    pipeline: int
    data: int
    tensor_rank: int
    pipeline_rank: int
    data_rank: int
    sequence: bool
    device: torch.device
    virtual: int = 1
    beside: Layout | None = None
    groups: ProcessGroups | None = field(default=None, compare=False, repr=False)

    @property
    def model_sizes(self) -> tuple[int, int, int]:
        """(tensor, pipeline, virtual): the parts that a model is cut into, as `ModelShape.check` takes them."""
        return self.tensor, self.pipeline, self.virtual

    @property
    def of_frozen(self) -> Layout:
        """The layout of models that only score."""
        return self.beside or self

    def active(self) -> AbstractContextManager[None]:
        """Models of this layout are built, and run, inside it."""
        return nullcontext() if self.groups is None else self.groups.active()

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline - 1

    @property
    def is_main(self) -> bool:
        """The one rank that writes logs and talks to the user."""
        return self.rank == 0

    @property
    def length_multiple(self) -> int:
        """Sequence lengths are padded to a multiple of this (sequence parallelism splits them over TP)."""
        return self.tensor if self.sequence else 1

    def describe(self) -> str:
        sequence = " with sequence parallelism" if self.sequence else ""
        chunks = f" with {self.virtual} chunks each" if self.virtual > 1 else ""
        sizes = f"data {self.data} x pipeline {self.pipeline}{chunks} x tensor {self.tensor}"
        own = f"{sizes}{sequence} on {self.device.type}"
        return own + (f"; frozen models {self.beside.describe()}" if self.beside else "")


def split_rows(count: int, parts: int) -> list[range]:
    """`count` rows in `parts` contiguous blocks whose sizes differ by at most one."""
    base, extra = divmod(count, parts)
    bounds = [part * base + min(part, extra) for part in range(parts + 1)]
    return [range(bounds[part], bounds[part + 1]) for part in range(parts)]
