"""Memory through which the processes of one machine exchange messages; csrc/shared_memory.h says how it is laid out.

A room is an unnamed file in memory: the kernel frees it with the last process that has mapped it, however that ends.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import torch
from torch import Tensor

from gipo_mc.ops import native

#: Elements and reductions that `Room.reduce` knows, as csrc/shared_memory.h numbers them.
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.int32: 2, torch.int64: 3}
SUM, MAX, MIN = range(3)
#: Looks at a counter before a rank sleeps: about ten microseconds.
_SPINS = 200


def available() -> bool:
    """Are there the kernels, on a system that has what they need?"""
    return hasattr(os, "memfd_create") and not native.use_reference() and hasattr(native.module(), "Room")


def new_file(ranks: int) -> int:
    """A descriptor of the file of a new room for so many ranks."""
    file = os.memfd_create("gipo_mc")
    os.ftruncate(file, native.module().room_bytes(ranks))
    return file


class Room:
    """A room as one rank sees it.

    Numbers of collectives and messages count from 1 and wrap around at 2^32. Each call that waits returns -1 when it is
    done, else, after `milliseconds`, the rank that it still waits for; it may then be made again. Tensors are
    contiguous and on the CPU, and their addresses are given as integers.
    """

    def __init__(self, file: int, ranks: int, rank: int) -> None:
        self._memory = mmap.mmap(file, native.module().room_bytes(ranks))
        self._bytes: Tensor = torch.frombuffer(self._memory, dtype=torch.uint8)  # keeps the mapping while it lives
        room: Any = native.module().Room(self._bytes.data_ptr(), ranks, rank, _SPINS)
        self.piece: int = native.module().ROOM_PIECE  # most bytes of a collective's or message's part
        self.letters: int = native.module().ROOM_LETTERS  # messages of a pair that may be on their way
        self.post, self.reduce, self.take, self.finish = room.post, room.reduce, room.take, room.finish
        self.send, self.receive = room.send, room.receive
