"""The files of a checkpoint's chunks, written front to back in one pass over memory, which sums them, too.

A chunk is what torch.save makes of it, so that torch.load reads it. Its zip has no CRC: that would cost as much as the
writing, and the manifest has a sum of all that is written.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from blake3 import blake3
from torch import Tensor

from gipo_mc.parallel.saving.plan import Chunk, Content

#: Bytes of a file that have a sum of their own.
PART = 1 << 26
#: Fits a core's cache: what is summed is still there when it is written.
_BLOCK = 1 << 20
#: Files that a rank writes at once.
FILES = 2


class Written(NamedTuple):
    """A file: sums of its parts, and where in it each chunk lies, as (key, offset, begin, length)."""

    name: str
    size: int
    sums: list[str]
    places: list[tuple[str, tuple[int, ...], int, int]]


class SummedFile:
    """A new file. What is written has a BLAKE3 sum for each `PART` bytes when it is closed, and is on the disk then."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb", buffering=0)
        self.size = 0
        self.sums: list[str] = []
        self._sum = blake3()
        #: What a write failed of: torch.save says only that it failed.
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            for begin in range(0, len(view), _BLOCK):
                self._block(view[begin : begin + _BLOCK])
        except OSError as error:
            self.failure = error
            raise
        return len(view)

    def _block(self, block: memoryview) -> None:
        while block:
            here = block[: PART - self.size % PART]
            self._sum.update(here)
            done = 0
            while done < len(here):
                done += self._stream.write(here[done:])
            self.size += len(here)
            if self.size % PART == 0:
                self._end_part()
            block = block[len(here) :]

    def _end_part(self) -> None:
        self.sums.append(self._sum.hexdigest())
        self._sum = blake3()

    def flush(self) -> None:
        """As torch.save wants of a stream: nothing is held back."""

    def close(self) -> None:
        try:
            os.fsync(self._stream.fileno())
        finally:
            self._stream.close()
        if self.size % PART or not self.sums:
            self._end_part()


def write_chunks(own: Sequence[tuple[Chunk, Content]], folder: Path, rank: int) -> list[Written]:
    """Write this rank's chunks into `__<rank>_<n>.distcp`, each file in a thread. Raises OSError.

    What it holds beside the state itself is a block of each file, and on CUDA one tensor of each.
    """
    found: list[Written] = []
    errors: list[BaseException] = []

    def work(number: int, share: Sequence[tuple[Chunk, Content]]) -> None:
        try:
            found.append(_write_file(share, folder / f"__{rank}_{number}.distcp"))
        except BaseException as error:
            errors.append(error)

    shares = [share for share in _shares(own) if share]
    # A setting of the process: all files are written without.
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        threads = [threading.Thread(target=work, args=(n, share), daemon=True) for n, share in enumerate(shares)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.serialization.set_crc32_options(before)
    if errors:
        raise errors[0]
    return sorted(found)


def _shares(own: Sequence[tuple[Chunk, Content]]) -> list[list[tuple[Chunk, Content]]]:
    """About as many bytes each."""
    load: list[int] = [0] * FILES
    found: list[list[tuple[Chunk, Content]]] = [[] for _ in load]
    for chunk, content in sorted(own, key=lambda pair: (-pair[0].bytes, pair[0].key, pair[0].offset)):
        least = load.index(min(load))
        load[least] += chunk.bytes
        found[least].append((chunk, content))
    return found


def _write_file(share: Sequence[tuple[Chunk, Content]], path: Path) -> Written:
    file = SummedFile(path)
    places = []
    try:
        for chunk, content in share:
            begin = file.size
            if isinstance(content, bytes):
                file.write(content)
            else:
                torch.save(_alone(content), file)  # type: ignore[arg-type]
            places.append((chunk.key, chunk.offset, begin, file.size - begin))
    except RuntimeError as error:
        raise file.failure or error from error
    finally:
        file.close()
    return Written(path.name, file.size, file.sums, places)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor on the host, in a storage of its own size: torch.save writes storages, and this one may be a piece of
    a buffer. The same memory where that can be."""
    tensor = tensor.cpu().contiguous()
    if tensor.untyped_storage().nbytes() == tensor.nbytes or not tensor.numel():
        return tensor if tensor.numel() else tensor.clone()
    memory = torch.from_numpy(tensor.view(-1).view(torch.uint8).numpy())
    return memory.view(tensor.dtype).view(tensor.shape)
