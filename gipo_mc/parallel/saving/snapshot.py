"""Copies on the host of what a forked process could not read as it was: memory of a GPU, and memory that is shared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gipo_mc.parallel.saving.plan import Chunk, Content


class HostCopies:
    """Memory for these copies, kept from save to save: the first time it is given by the system, which takes longer
    than the copying."""

    def __init__(self) -> None:
        self._memory: dict[Chunk, Tensor] = {}

    def of(self, own: Sequence[tuple[Chunk, Content]]) -> list[tuple[Chunk, Content]]:
        """The same chunks as a fork of this process will see them whatever happens to the state."""
        wanted = {chunk for chunk, content in own if not _forks(content)}
        self._memory = {chunk: memory for chunk, memory in self._memory.items() if chunk in wanted}
        return [(chunk, content if chunk not in wanted else self._copied(chunk, content)) for chunk, content in own]

    def _copied(self, chunk: Chunk, content: Content) -> Tensor:
        assert isinstance(content, Tensor)
        if chunk not in self._memory:
            self._memory[chunk] = torch.empty(content.shape, dtype=content.dtype)
        return self._memory[chunk].copy_(content)


def _forks(content: Content) -> bool:
    return not isinstance(content, Tensor) or (content.device.type == "cpu" and not content.is_shared())
