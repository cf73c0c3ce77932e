"""Bytes from the device to the host and back, beside the work of the device: a thin interface, and one way for each
kind of device.

A mover has one queue. What is put into it runs in order, while the caller goes on; `Move.wait` waits for one entry.
On CUDA the queue is a stream and the host is page-locked memory. On a CPU, whose memory is the host's already, the
queue is a thread and the host a file, so that the same code can be run, and memory saved, without a GPU.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, UntypedStorage

from gipo_mc.errors import StorageError

#: Bytes of one read or write of a file; Linux does at most 2 GiB in a call.
_PIECE = 1 << 30


class Move(Protocol):
    """Something in a mover's queue."""

    def wait(self) -> None:
        """Return when it is done. Raises what it raised."""
        ...


class Copy(Protocol):
    """Room on the host for the contents of a list of storages."""

    #: Bytes of the contents.
    size: int

    def save(self) -> Move:
        """Copy the contents to the host and free them on the device, where each storage is left with 0 bytes."""
        ...

    def load(self) -> Move:
        """Give each storage its memory again, with the contents as they were saved."""
        ...

    def close(self) -> None:
        """Give the room back; nothing of it is in the queue."""
        ...


class Mover(Protocol):
    """Where things go from one kind of device."""

    #: In words, for the user.
    place: str

    def room(self, name: str, storages: Sequence[UntypedStorage]) -> Copy:
        """Room for these storages as they are now. name: in messages. Raises StorageError where there is none."""
        ...

    def close(self) -> None:
        """Give all room back. What was not loaded is lost."""
        ...


def release(storages: Sequence[UntypedStorage]) -> None:
    """Free contents that nobody needs again. Tensors keep their shapes, and must not be read."""
    for storage in storages:
        storage.resize_(0)


def restore(storages: Sequence[UntypedStorage], sizes: Sequence[int]) -> None:
    """Give storages memory of these bytes, with any content."""
    for storage, size in zip(storages, sizes, strict=True):
        storage.resize_(size)


def mover_for(device: torch.device, folder: Path) -> Mover:
    """folder: holds the files of a CPU device, which have no name there and go with the process, killed or not."""
    return PinnedMover(device) if device.type == "cuda" else FileMover(folder)


# --------------------------------------------------------------------------------------------------------------- files
class FileMover:
    """Files of the run folder and a thread. A file has no name: the kernel frees it when the process ends, however it
    ends, so that a killed run leaves nothing. `write` and not a memory map, which a full disk answers with SIGBUS."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.place = folder, f"files without a name in {folder}"
        self._thread = ThreadPoolExecutor(1, "offload")
        #: Not those that were replaced: a copy holds the storages that it is of.
        self._files: weakref.WeakSet[FileCopy] = weakref.WeakSet()

    def room(self, name: str, storages: Sequence[UntypedStorage]) -> FileCopy:
        made = FileCopy(name, storages, self._folder, self._thread.submit)
        self._files.add(made)
        return made

    def close(self) -> None:
        self._thread.shutdown()
        for made in self._files:
            made.close()


class _InThread:
    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self) -> None:
        self._future.result()


class FileCopy:
    """The storages one behind the other in a file."""

    def __init__(
        self,
        name: str,
        storages: Sequence[UntypedStorage],
        folder: Path,
        submit: Callable[[Callable[[], None]], Future[None]],
    ) -> None:
        self._name, self._storages, self._folder, self._submit = name, storages, folder, submit
        self._sizes = [storage.nbytes() for storage in storages]
        self.size = sum(self._sizes)
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed by the mover
            os.posix_fallocate(self._file.fileno(), 0, self.size)  # a full disk is found now, not in an hour
        except OSError as error:
            raise self._no_room(error) from error

    def save(self) -> Move:
        def work() -> None:
            self._each(os.pwrite)
            release(self._storages)

        return _InThread(self._submit(work))

    def load(self) -> Move:
        def work() -> None:
            restore(self._storages, self._sizes)
            self._each(lambda file, view, place: os.preadv(file, [view], place))

        return _InThread(self._submit(work))

    def close(self) -> None:
        self._file.close()

    def _each(self, transfer: Callable[[int, memoryview, int], int]) -> None:
        place = 0
        for storage, size in zip(self._storages, self._sizes, strict=True):
            # Not through numpy, which makes a storage one that cannot be freed.
            view = memoryview((ctypes.c_char * size).from_address(storage.data_ptr()))
            done = 0
            while done < size:
                try:
                    moved = transfer(self._file.fileno(), view[done : done + _PIECE], place + done)
                except OSError as error:
                    raise self._no_room(error) from error
                if not moved:
                    raise StorageError(
                        f"The file of {self._name} in {self._folder} has become shorter (memory.offload)."
                    )
                done += moved
            place += size

    def _no_room(self, error: OSError) -> StorageError:
        return StorageError(
            f"memory.offload cannot put {self._name} ({self.size:,} bytes) into a file in {self._folder}: "
            f"{error.strerror}. Free space on that disk, choose another one with run.dir, or shorten memory.offload."
        )


# ------------------------------------------------------------------------------------------------------ pinned memory
class PinnedMover:
    """Page-locked memory and a stream of its own.

    Memory is locked where it lies (cudaHostRegister): torch's own pinned memory comes in powers of two, up to twice of
    what is asked for, and Megatron's offload copies to pageable memory first.
    """

    place = "page-locked memory of the host"

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._copies: weakref.WeakSet[PinnedCopy] = weakref.WeakSet()

    def room(self, name: str, storages: Sequence[UntypedStorage]) -> PinnedCopy:
        made = PinnedCopy(name, storages, self._stream)
        self._copies.add(made)
        return made

    def close(self) -> None:
        self._stream.synchronize()
        for made in self._copies:
            made.close()


class _OnStream:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._done = stream.record_event()

    def wait(self) -> None:
        # The host waits, and not only a stream: so the seconds can be told, and what was freed is free.
        self._done.synchronize()


class PinnedCopy:
    """The storages one behind the other in page-locked memory."""

    def __init__(self, name: str, storages: Sequence[UntypedStorage], stream: torch.cuda.Stream) -> None:
        self._storages, self._stream = storages, stream
        self._sizes = [storage.nbytes() for storage in storages]
        self.size = sum(self._sizes)
        try:
            self._host = _not_forked(self.size)
            self._unlock = _locked(self._host)
        except (RuntimeError, OSError) as error:
            raise StorageError(
                f"memory.offload cannot lock {self.size:,} bytes of host memory for {name}: {str(error)[:200]}. Raise "
                "the limit of the job's memory (ulimit -l, --mem), or shorten memory.offload."
            ) from error

    def save(self) -> Move:
        self._stream.wait_stream(torch.cuda.current_stream())  # what still computes with them
        with torch.cuda.stream(self._stream):
            for storage, host in zip(self._storages, self._parts(), strict=True):
                flat = _bytes_of(storage)
                host.copy_(flat, non_blocking=True)
                flat.record_stream(self._stream)  # the memory is nobody else's before it is copied
        release(self._storages)
        return _OnStream(self._stream)

    def load(self) -> Move:
        restore(self._storages, self._sizes)  # on the caller's stream, whose allocator it is to go back to
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for storage, host in zip(self._storages, self._parts(), strict=True):
                _bytes_of(storage).copy_(host, non_blocking=True)
        return _OnStream(self._stream)

    def close(self) -> None:
        self._unlock()

    def _parts(self) -> tuple[Tensor, ...]:
        return self._host.split(self._sizes)


def _bytes_of(storage: UntypedStorage) -> Tensor:
    size = storage.nbytes()
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (size,), (1,))  # type: ignore[call-overload, no-any-return]


def _not_forked(size: int) -> Tensor:
    """`size` bytes that are not in a fork of this process: for one (checkpoint.async) the system would copy all locked
    pages at once, before the fork returns. Raises OSError."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _locked(host: Tensor) -> Callable[[], None]:
    """Lock the pages of `host`; a function that unlocks them once, which is also called when `host` goes."""
    address, runtime = host.data_ptr(), torch.cuda.cudart()
    torch.cuda.check_error(int(runtime.cudaHostRegister(address, host.nbytes, 0)))
    unlock = weakref.finalize(host, runtime.cudaHostUnregister, address)
    unlock.atexit = False  # the process gives its pages back by itself
    return unlock
