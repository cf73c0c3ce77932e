"""How the ranks are laid out, in the plan's terms, and which links lie between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """data x pipeline x tensor, tensor innermost, then data, as `gipo_mc.parallel.layout` has it.

    node: GPUs of one machine. distributed_optimizer: is optimizer state sharded over data-parallel ranks? overlap: are
    gradients summed, and weights gathered, while passes run? virtual: chunks of layers on each pipeline rank.
    """

    tensor: int
    pipeline: int
    data: int
    sequence: bool
    distributed_optimizer: bool
    node: int = 8
    overlap: bool = False
    virtual: int = 1

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
        """Does a process group ("tensor", "data" or "pipeline") reach over one machine?"""
        span = {"tensor": self.tensor, "data": self.tensor * self.data, "pipeline": self.world}[group]
        return span > self.node

    def describe(self) -> str:
        chunks = f" in {self.virtual} chunks" if self.virtual > 1 else ""
        parts = [f"tensor {self.tensor}", f"pipeline {self.pipeline}{chunks}", f"data {self.data}"]
        return " x ".join(parts) + (", sequence parallel" if self.sequence else "")
