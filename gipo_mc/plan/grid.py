"""How the ranks are laid out, in the plan's terms, and which links lie between them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Grid:
    """data x pipeline x tensor, tensor innermost, then data, as `gipo_mc.parallel.layout` has it.

    node: GPUs of one machine. distributed_optimizer: is optimizer state sharded over data-parallel ranks?
    frozen: (tensor, pipeline) of frozen models.
    """

    tensor: int
    pipeline: int
    data: int
    sequence: bool
    distributed_optimizer: bool
    node: int = 8
    frozen: tuple[int, int] = (0, 0)

    def of(self, trained: bool) -> Grid:
        """The grid of trained or of frozen models: these may have another on the same ranks."""
        tensor, pipeline = self.frozen[0] or self.tensor, self.frozen[1] or self.pipeline
        if trained or (tensor, pipeline) == (self.tensor, self.pipeline):
            return self
        data = self.world // (tensor * pipeline)
        sequence = self.sequence and tensor > 1
        return replace(self, tensor=tensor, pipeline=pipeline, data=data, sequence=sequence, frozen=(0, 0))

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

    def padded(self, length: int) -> int:
        """A sequence length as micro-batches pad it."""
        return -(-length // self.length_multiple) * self.length_multiple

    def crosses_nodes(self, group: str) -> bool:
        """Does a process group ("tensor", "data" or "pipeline") reach over one machine?"""
        span = {"tensor": self.tensor, "data": self.tensor * self.data, "pipeline": self.world}[group]
        return span > self.node

    def describe(self) -> str:
        parts = [f"tensor {self.tensor}", f"pipeline {self.pipeline}", f"data {self.data}"]
        return " x ".join(parts) + (", sequence parallel" if self.sequence else "")
