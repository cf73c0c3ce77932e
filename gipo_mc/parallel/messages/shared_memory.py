"""Process groups whose ranks share a machine: tensors on the CPU go through memory, not through gloo's sockets.

gloo sends each message over a TCP connection of the loopback device, which costs two processes a third of a millisecond
for a few bytes and more than one for 300 kB; here it is a copy, and a wake-up where the other rank sleeps. `BACKEND` is
a backend of torch.distributed like any other: Megatron and torch call it, and gloo's own group stays behind it for what
is not here (gather, scatter, other types and reductions). Where ranks are on several machines, cannot map each other's
memory, or are more than `meeting.MOST_RANKS`, the backend is gloo.

Sums are added in the order of the ranks: for two of them that is gloo's result to the bit. No thread copies while the
ranks compute: a collective that is begun asynchronously posts its first piece at once, and the rest in `wait`.

A rank that waits looks every few moments whether those that it waits for still live, and raises what gloo raises: a
RuntimeError that says "Connection closed by peer", or "Timed out". One says so, too, where ranks bring other sizes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gipo_mc.ops.shared_memory import ELEMENTS, MAX, MIN, SUM, Room
from gipo_mc.parallel.messages.meeting import has_ended, room_of

BACKEND = "gipo_mc_memory"
#: Milliseconds between two looks at the processes that a rank waits for.
_LOOK = 100
_NUMBERS = 2**32


def register() -> None:
    """Let torch.distributed know the backend. Idempotent."""
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])


def _create(options: Any, _: Any = None) -> Any:
    """Called by torch on every rank of a new group."""
    everyone = list(options.global_ranks_in_group)  # none for the first group, of all ranks
    group = options.store, options.group_rank, options.group_size
    gloo = dist.ProcessGroupGloo(*group, timeout=options.timeout)
    room = room_of(*group, everyone)
    return gloo if room is None else MemoryGroup(gloo, room, everyone or list(range(options.group_size)))


#: Goes on with a message for some milliseconds: -1 when it is there, else the rank that it still waits for.
_Mail = Callable[[int], int]


class _Waiting(dist.Work):
    """A collective or message that has begun; `end` brings it to its end, once."""

    def __init__(self, end: Callable[[], Any] | None) -> None:
        super().__init__()
        self._end = end

    def wait(self, timeout: timedelta | None = None) -> bool:
        end, self._end = self._end, None
        if end is not None:
            end()
        return True

    def is_completed(self) -> bool:
        return self._end is None


_DONE = _Waiting(None)


class MemoryGroup(dist.ProcessGroup):
    """A group of ranks that have one room.

    A collective that is begun asynchronously ends in `wait`, or when the next one of the group begins. Messages between
    two ranks arrive in the order in which they were sent. A tensor that is longer than a piece of the room goes in
    several; a message that does not fit among the letters on their way goes through gloo, on both sides.
    """

    def __init__(self, gloo: Any, room: Room, everyone: list[int]) -> None:
        # torch's stubs know another constructor, which does not take subclasses.
        super().__init__(gloo.rank(), gloo.size())  # type: ignore[call-arg]
        self._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        self._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        self._gloo, self._room, self._everyone = gloo, room, everyone
        self._rank, self._ranks = gloo.rank(), gloo.size()
        self._number = 0
        self._begun = _DONE
        self._sent, self._received = [0] * self._ranks, [0] * self._ranks
        #: To and from each rank, messages that are not there yet, in their order.
        self._outgoing: list[list[_Mail]] = [[] for _ in range(self._ranks)]
        self._incoming: list[list[_Mail]] = [[] for _ in range(self._ranks)]

    # Collectives

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Any:  # type: ignore[override]
        found = _reduction(tensors, opts)
        if found is None:
            return self._gloo.allreduce(tensors, opts)
        (tensor,), (element, reduction) = tensors, found
        whole = tensor.contiguous()  # itself, where it is

        def run() -> Iterator[None]:
            size = whole.element_size()
            for begin, length in self._pieces(whole.nbytes, self._room.piece):
                address = whole.data_ptr() + begin
                number = self._post(address, length)
                yield
                self._until(self._room.reduce, number, address, length // size, 0, element, reduction)
                self._room.finish(number)
            if whole is not tensor:
                tensor.copy_(whole)

        return self._start(run(), opts)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Any:
        for tensor in tensors[:-1]:
            self.allreduce([tensor], opts).wait()
        return self.allreduce(tensors[-1:], opts)

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Any:  # type: ignore[override]
        (tensor,), root = tensors, opts.rootRank
        whole = tensor.contiguous()

        def run() -> Iterator[None]:
            for begin, length in self._pieces(whole.nbytes, self._room.piece):
                address = whole.data_ptr() + begin
                if root == self._rank:
                    number = self._post(address, length)
                    yield
                else:
                    yield
                    number = self._next()
                    self._until(self._room.take, number, root, address, length)
                self._room.finish(number)
            if whole is not tensor:
                tensor.copy_(whole)

        return self._start(run(), opts)

    def allgather(  # type: ignore[override]
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Any:
        return self._gather(outputs[0], inputs[0], opts)

    def _gather(self, outputs: list[Tensor], given: Tensor, opts: Any) -> Any:
        """outputs: of each rank, in its order; each as large as `given`."""
        _check_sizes(outputs, given, self._ranks)
        own = given.contiguous()
        wholes = [part if part.is_contiguous() else torch.empty_like(own) for part in outputs]

        def run() -> Iterator[None]:
            for begin, length in self._pieces(own.nbytes, self._room.piece):
                number = self._post(own.data_ptr() + begin, length)
                yield
                for rank, whole in enumerate(wholes):
                    self._until(self._room.take, number, rank, whole.data_ptr() + begin, length)
                self._room.finish(number)
            for part, whole in zip(outputs, wholes, strict=True):
                if whole is not part:
                    part.copy_(whole)

        return self._start(run(), opts)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        return self._gather(list(output.view(-1).chunk(self._ranks)), input, opts)

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        for output, given in zip(outputs, inputs, strict=True):
            work = self.all_gather_single(output, given, opts)
        return work

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        found = _reduction([output], opts)
        if found is None or not (output.is_contiguous() and input.is_contiguous()):
            return self._gloo._reduce_scatter_base(output, input, opts)
        _check_sizes(list(input.view(-1).chunk(self._ranks)), output, self._ranks)
        element, reduction = found

        def run() -> Iterator[None]:
            size, share = output.element_size(), self._room.piece // self._ranks // 64 * 64
            for begin, length in self._pieces(output.nbytes, share):
                number = self._post(input.data_ptr() + begin, length, stride=output.nbytes, pieces=self._ranks)
                yield
                address = output.data_ptr() + begin
                offset = self._rank * length
                self._until(self._room.reduce, number, address, length // size, offset, element, reduction)
                self._room.finish(number)

        return self._start(run(), opts)

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        for output, given in zip(outputs, inputs, strict=True):
            work = self.reduce_scatter_single(output, given, opts)
        return work

    # What torch calls these up to 2.12.
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single  # type: ignore[assignment]
    allgather_into_tensor_coalesced = all_gather_single_coalesced  # type: ignore[assignment]
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced  # type: ignore[assignment]

    def barrier(self, opts: Any = None) -> Any:
        def run() -> Iterator[None]:
            number = self._post(0, 0)
            yield
            for rank in range(self._ranks):
                self._until(self._room.take, number, rank, 0, 0)
            self._room.finish(number)

        return self._start(run(), opts)

    # Messages between two ranks

    def send(self, tensors: list[Tensor], to: int, tag: int = 0) -> Any:
        (tensor,) = tensors
        if tag or tensor.nbytes > self._room.letters * self._room.piece:
            return self._gloo.send(tensors, to, tag)
        return self._mail(self._outgoing[to], self._room.send, self._sent, to, tensor.contiguous())

    def recv(self, tensors: list[Tensor], source: int, tag: int = 0) -> Any:
        (tensor,) = tensors
        if tag or tensor.nbytes > self._room.letters * self._room.piece:
            return self._gloo.recv(tensors, source, tag)
        whole = tensor if tensor.is_contiguous() else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        arrived = None if whole is tensor else lambda: tensor.copy_(whole)
        return self._mail(self._incoming[source], self._room.receive, self._received, source, whole, arrived)

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> Any:
        raise RuntimeError("Messages through shared memory are received from a rank that is named.")

    def _mail(
        self,
        queue: list[_Mail],
        move: Callable[..., int],
        counts: list[int],
        rank: int,
        whole: Tensor,
        then: Callable[[], Any] | None = None,
    ) -> Any:
        """Move a tensor in pieces, behind those of its queue; what cannot go at once goes in `wait`, or while this rank
        waits for something else."""
        pieces = self._pieces(whole.nbytes, self._room.piece)

        def go_on(milliseconds: int) -> int:
            while pieces:
                begin, length = pieces[0]
                late = move(_after(counts[rank]), rank, whole.data_ptr() + begin, length, milliseconds)
                if late >= 0:
                    return late
                counts[rank] = _after(counts[rank])
                del pieces[0]
            if then is not None:
                then()
            return -1

        def end() -> None:
            while go_on in queue:
                first = queue[0]
                self._until(first)
                if queue and queue[0] is first:  # else it went while something else was waited for
                    del queue[0]

        queue.append(go_on)
        if queue is self._outgoing[rank]:
            self._move_on(queue)
        return _Waiting(end) if go_on in queue else _DONE

    @staticmethod
    def _move_on(queue: list[_Mail]) -> None:
        while queue and queue[0](0) < 0:
            del queue[0]

    # What they are made of

    def _start(self, run: Iterator[None], opts: Any) -> Any:
        """`run` begins, and stops once, where all that others wait for is done."""
        self._begun.wait()
        next(run, None)
        work = _Waiting(lambda: list(run))
        if getattr(opts, "asyncOp", False):
            self._begun = work
            return work
        work.wait()
        return _DONE

    @staticmethod
    def _pieces(nbytes: int, most: int) -> list[tuple[int, int]]:
        """(first byte, bytes) of each."""
        return [(begin, min(most, nbytes - begin)) for begin in range(0, nbytes, most)]

    def _next(self) -> int:
        self._number = _after(self._number)
        return self._number

    def _post(self, address: int, length: int, stride: int = 0, pieces: int = 1) -> int:
        """This rank's part of the next collective, whose number is returned."""
        number = self._next()
        self._until(self._room.post, number, address, length, stride, pieces)
        return number

    def _until(self, call: Callable[..., int], *arguments: int) -> None:
        """Call until it is done. Raises RuntimeError where a rank that it waits for has ended, or takes too long."""
        late = call(*arguments, 0 if self._has_mail(call) else _LOOK)
        if late < 0:
            return
        limit = self._gloo.options._timeout.total_seconds()
        deadline = time.monotonic() + limit - _LOOK / 1000
        while late >= 0:
            if has_ended(self._everyone[late]):
                late = call(*arguments, 0)  # it may have ended after the last thing that it had to say
                if late < 0:
                    return
                raise RuntimeError(f"Connection closed by peer: the process of rank {self._everyone[late]} has ended.")
            if time.monotonic() > deadline:
                raise RuntimeError(f"Timed out waiting {limit * 1000:.0f}ms for rank {self._everyone[late]}.")
            if has_mail := self._has_mail(call):  # the other rank may be waiting for it
                for queue in (*self._outgoing, *self._incoming):
                    self._move_on(queue)
            late = call(*arguments, 1 if has_mail else _LOOK)

    def _has_mail(self, but: Callable[..., int]) -> bool:
        """Is a message on its way, other than this one?"""
        return any(mail is not but for queue in (*self._outgoing, *self._incoming) for mail in queue)


def _check_sizes(parts: Sequence[Tensor], one: Tensor, ranks: int) -> None:
    """Raises ValueError unless there is one for each rank, as large as `one`: what follows knows addresses alone."""
    if [(part.numel(), part.dtype) for part in parts] != [(one.numel(), one.dtype)] * ranks:
        found = [list(part.shape) for part in parts]
        raise ValueError(f"{ranks} ranks need {ranks} tensors like that of {list(one.shape)}, there are {found}.")


def _after(number: int) -> int:
    return (number + 1) % _NUMBERS


def _reduction(tensors: list[Tensor], opts: Any) -> tuple[int, int] | None:
    """(element, reduction) for `Room.reduce`; None: it has none for these."""
    if len(tensors) != 1 or tensors[0].layout is not torch.strided or tensors[0].dtype not in ELEMENTS:
        return None
    operation = dist.ReduceOp.SUM if opts is None else opts.reduceOp
    for known, code in ((dist.ReduceOp.SUM, SUM), (dist.ReduceOp.MAX, MAX), (dist.ReduceOp.MIN, MIN)):
        if operation == known:
            return ELEMENTS[tensors[0].dtype], code
    return None
