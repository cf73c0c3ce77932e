"""How the ranks are laid out, in the plan's terms, and which links lie between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache


@dataclass(frozen=True)
class Grid:
    """data x pipeline x tensor, tensor innermost, then data, as `gipo_mc.parallel.layout` has it.

    node: GPUs of one machine. distributed_optimizer: is optimizer state sharded over data-parallel ranks? overlap: are
    gradients summed, and weights gathered, while passes run? virtual: chunks of layers on each pipeline rank.
    frozen: (tensor, pipeline) of frozen models.
    """

    tensor: int
    pipeline: int
    data: int
    sequence: bool
    distributed_optimizer: bool
    node: int = 8
    overlap: bool = False
    virtual: int = 1
    frozen: tuple[int, int] = (0, 0)

    def of(self, trained: bool) -> Grid:
        """The grid of trained or of frozen models: these may have another on the same ranks."""
        tensor, pipeline = self.frozen[0] or self.tensor, self.frozen[1] or self.pipeline
        if trained or (tensor, pipeline) == (self.tensor, self.pipeline):
            return self
        data = self.world // (tensor * pipeline)
        sequence = self.sequence and tensor > 1
        return replace(self, tensor=tensor, pipeline=pipeline, data=data, sequence=sequence, frozen=(0, 0), virtual=1)

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def sharded_sequence(self) -> int:
        """Ranks that share the tokens between the tensor-parallel parts of a layer."""
        return self.tensor if self.sequence else 1

    @property
    def length_multiple(self) -> int:
        return self.sharded_sequence

    @property
    def bucket(self) -> int:
        """Numbers of a bucket of gradients on the first stage, Megatron's default; 0: all in one, which later stages
        have anyway."""
        return max(40_000_000, 1_000_000 * self.data) if self.overlap else 0

    def padded(self, length: int) -> int:
        """A sequence length as micro-batches pad it."""
        return -(-length // self.length_multiple) * self.length_multiple

    def crosses_nodes(self, group: str) -> bool:
        """Does any process group of a kind ("tensor", "data" or "pipeline") have ranks on two machines?"""
        return _crosses(group, self.tensor, self.data, self.pipeline, self.node)

    def describe(self) -> str:
        chunks = f" in {self.virtual} chunks" if self.virtual > 1 else ""
        parts = [f"tensor {self.tensor}", f"pipeline {self.pipeline}{chunks}", f"data {self.data}"]
        return " x ".join(parts) + (", sequence parallel" if self.sequence else "")


@lru_cache(maxsize=4096)
def _crosses(group: str, tensor: int, data: int, pipeline: int, node: int) -> bool:
    """Machine k has the ranks from k * node on. All groups of a kind are one another's, moved by some ranks."""
    stage = tensor * data
    if group == "tensor":
        first, span = range(0, stage * pipeline, tensor), tensor - 1
    elif group == "data":
        first, span = range(stage * pipeline), stage - tensor
    else:
        first, span = range(stage), stage * (pipeline - 1)
    if not span or span >= node:
        return span > 0
    starts = (start for start in first if group != "data" or start % stage < tensor)
    return any(start // node != (start + span) // node for start in starts)
