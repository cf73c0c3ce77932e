"""One process in the place of any rank of a job that does not run.

Megatron's groups are made as in a start, for this rank, over a backend that talks to nobody, and tensors have shapes
but no storage (torch's device "meta"). Modules, buffers, optimizers and schedules are the real ones, and take no
memory. What a collective would bring is not there: shapes and the order of calls mean something, values nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import param_and_grad_buffer
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

from gipo_mc.config import ParallelConfig
from gipo_mc.parallel import runtime
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.megatron import cpu_adapter

META = torch.device("meta")
_BACKEND = "pretend"


@dataclass(frozen=True)
class Group:
    """A process group: what Megatron calls it, and its ranks."""

    name: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Message:
    """One tensor between two stages: an activation goes to the next stage, a gradient to the previous one."""

    kind: Literal["activation", "gradient"]
    sent: bool
    shape: tuple[int, ...]


#: What a stage posts at once. It goes on when all of it has passed.
Exchange = tuple[Message, ...]


class _Done:
    def wait(self) -> None:
        """Nothing runs."""


@dataclass
class Pretence:
    """This process as one rank.

    groups: of all ranks, each once. exchanges: what the stage has posted so far. incoming: shape of every tensor that a
    neighbour sends; the sender's own exchanges tell whether it does.
    """

    layout: Layout
    groups: list[Group]
    exchanges: list[Exchange] = field(default_factory=list)
    incoming: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    def communicate(
        self, *, tensor_send_next: Any, tensor_send_prev: Any, recv_prev: bool, recv_next: bool, **_: Any
    ) -> tuple[Any, Any, None]:
        """In the place of `P2PCommunicator._communicate`."""
        posted = [
            *self._sent("activation", tensor_send_next), *self._sent("gradient", tensor_send_prev),
            *([Message("activation", False, self.incoming)] if recv_prev else []),
            *([Message("gradient", False, self.incoming)] if recv_next else []),
        ]  # fmt: skip
        if posted:
            self.exchanges.append(tuple(posted))
        return self._received(recv_prev), self._received(recv_next), None

    def transfer(self, operations: list[Any]) -> list[_Done]:
        """In the place of `torch.distributed.batch_isend_irecv` between stages, which generation calls."""
        posted = [
            Message("activation", operation.op is dist.isend, tuple(operation.tensor.shape)) for operation in operations
        ]
        self.exchanges.append(tuple(posted))
        return [_Done() for _ in posted]

    @staticmethod
    def _sent(kind: Literal["activation", "gradient"], tensor: Any) -> list[Message]:
        return [] if tensor is None else [Message(kind, True, tuple(tensor.shape))]

    def _received(self, wanted: bool) -> torch.Tensor | None:
        return torch.empty(self.incoming, dtype=self.dtype, device=META, requires_grad=True) if wanted else None


@contextmanager
def pretended(parallel: ParallelConfig, world: int, rank: int) -> Iterator[Pretence]:
    """Within it this process is rank `rank` of `world`, and new tensors are on the device "meta".

    Every rank makes all groups, in one order, so one of them knows those of all. Raises RuntimeError in a process that
    is a rank of a real job.
    """
    if dist.is_initialized():
        raise RuntimeError("this process is a rank of a job, and cannot stand in for another")
    _register()
    groups: list[Group] = []
    with _replaced(groups):
        try:
            dist.init_process_group(_BACKEND, store=dist.HashStore(), rank=rank, world_size=world)
            layout = runtime.initialize(parallel, "cpu")
            found = Pretence(replace(layout, device=META), groups)
            P2PCommunicator._communicate = lambda _, **what: found.communicate(**what)
            dist.batch_isend_irecv = found.transfer  # type: ignore[assignment]
            cpu_adapter.CPU = META
            with META:
                yield found
        finally:
            runtime.shutdown()


@contextmanager
def _replaced(groups: list[Group]) -> Iterator[None]:
    """Megatron with groups that are noted down and have no backend of their own, on a device without storage, where
    collectives are called one by one (torch cannot join those of tensors without storage)."""
    create, place = parallel_state.create_group, cpu_adapter.CPU
    communicate, joined = P2PCommunicator._communicate, param_and_grad_buffer._coalescing_manager
    transfer = dist.batch_isend_irecv

    def noted(ranks: Any = None, timeout: Any = None, backend: Any = None, **others: Any) -> Any:
        groups.append(Group(others.get("group_desc") or "", tuple(ranks)))
        return create(ranks, timeout, backend=None, **others)

    parallel_state.create_group = noted
    param_and_grad_buffer._coalescing_manager = _one_by_one
    try:
        yield
    finally:
        parallel_state.create_group, cpu_adapter.CPU = create, place
        P2PCommunicator._communicate, param_and_grad_buffer._coalescing_manager = communicate, joined
        dist.batch_isend_irecv = transfer


@contextmanager
def _one_by_one(*_: Any, **__: Any) -> Iterator[_Done]:
    yield _Done()


def _register() -> None:
    """A backend whose calls return at once: that of torch's own tests, which does not know the device "meta"."""
    from torch.testing._internal.distributed import fake_pg

    if _BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(_BACKEND, fake_pg._create_fake_pg, extended_api=True, devices=["cpu", "meta"])
