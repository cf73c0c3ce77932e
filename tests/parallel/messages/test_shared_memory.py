"""Messages through shared memory: what they bring is what gloo brings, and a rank that is lost is noticed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gipo_mc.ops.shared_memory import Room
from gipo_mc.parallel import runtime
from gipo_mc.parallel.messages import meeting
from gipo_mc.parallel.messages import shared_memory as memory
from tests.ranks import exit_codes, run_ranks

PIECE = 1 << 20  # bytes of a room's piece
SIZES = ((), (1,), (3, 5), (PIECE // 4,), (PIECE // 4 + 1,), (700_001,), (0,))


def _drawn(rank: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(rank)) * 1000
    return values.to(dtype)


def _same(found: Tensor, expected: Tensor, what: object) -> None:
    assert torch.equal(found, expected) and found.dtype == expected.dtype, what


def _reductions(rank: int, group: Any, gloo: Any) -> None:
    ranks, own = dist.get_world_size(group), dist.get_rank(group)
    operations = (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN, dist.ReduceOp.PRODUCT)
    for dtype in (torch.float32, torch.float64, torch.int32, torch.int64, torch.bfloat16):
        for operation in operations:
            for shape in SIZES[:4]:
                ours = _drawn(own, shape, dtype)
                theirs = ours.clone()
                dist.all_reduce(ours, op=operation, group=group)
                dist.all_reduce(theirs, op=operation, group=gloo)
                if ranks == 2 or operation in operations[1:3]:
                    _same(ours, theirs, (dtype, operation, shape))
    for shape in SIZES:
        ours = _drawn(own, shape)
        dist.all_reduce(ours, group=group)
        expected = _drawn(0, shape) + _drawn(1, shape)
        for other in range(2, ranks):
            expected += _drawn(other, shape)
        _same(ours, expected, shape)
    across = _drawn(own, (6, 4)).t()
    dist.all_reduce(across, group=group)
    _same(across, sum(_drawn(other, (6, 4)).t() for other in range(ranks)), "not contiguous")  # type: ignore[arg-type]


def _copies(rank: int, group: Any) -> None:
    ranks, own, first = dist.get_world_size(group), dist.get_rank(group), dist.get_process_group_ranks(group)[0]
    for shape in SIZES:
        for root in range(ranks):
            tensor = _drawn(own, shape, torch.bfloat16)
            dist.broadcast(tensor, src=first + root, group=group)
            _same(tensor, _drawn(root, shape, torch.bfloat16), (shape, root))
        parts = [torch.empty(shape) for _ in range(ranks)]
        dist.all_gather(parts, _drawn(own, shape), group=group)
        for other, part in enumerate(parts):
            _same(part, _drawn(other, shape), shape)
        whole = torch.empty(ranks, *shape)
        dist.all_gather_into_tensor(whole, _drawn(own, shape), group=group)
        _same(whole, torch.stack(parts), shape)
        share = torch.empty(shape)
        dist.reduce_scatter_tensor(
            share, torch.stack([_drawn(own + 10 * to, shape) for to in range(ranks)]), group=group
        )
        expected = _drawn(10 * own, shape) + _drawn(1 + 10 * own, shape)
        for other in range(2, ranks):
            expected += _drawn(other + 10 * own, shape)
        _same(share, expected, shape)
    for call in (
        lambda: dist.all_gather([torch.empty(2)] * ranks, torch.ones(3), group=group),
        lambda: dist.all_gather_into_tensor(torch.empty(3 * ranks - 1), torch.ones(3), group=group),
        lambda: dist.all_gather([torch.empty(3, dtype=torch.float64)] * ranks, torch.ones(3), group=group),
        lambda: dist.reduce_scatter_tensor(torch.empty(3), torch.ones(3 * ranks - 1), group=group),
    ):
        with pytest.raises((ValueError, RuntimeError)):  # and nothing is written where it does not belong
            call()
    said: list[Any] = [None] * ranks
    dist.all_gather_object(said, {"rank": own}, group=group)
    assert said == [{"rank": other} for other in range(ranks)]
    dist.barrier(group=group)


def _in_flight(rank: int, group: Any) -> None:
    """Collectives that were begun and not waited for, one of them never."""
    own, ranks = dist.get_rank(group), dist.get_world_size(group)
    one, two, three = (torch.full((PIECE // 2,), float(own + number)) for number in range(3))
    first = dist.all_reduce(one, group=group, async_op=True)
    second = dist.all_reduce(two, group=group, async_op=True)
    dist.all_reduce(three, group=group, async_op=True)
    total = ranks * (ranks - 1) / 2
    second.wait()
    first.wait()
    dist.barrier(group=group)
    assert one[-1] == total and two[-1] == total + ranks and three[-1] == total + 2 * ranks


def _mail(rank: int, group: Any) -> None:
    """Around a ring: more messages than fit on their way, and some of more bytes than fit at all."""
    own, ranks = dist.get_rank(group), dist.get_world_size(group)
    everyone = dist.get_process_group_ranks(group)
    following, previous = everyone[(own + 1) % ranks], everyone[own - 1]
    counts = [0, 1, 7, PIECE // 4, PIECE // 4 + 1, PIECE, PIECE // 2, 5 * PIECE // 4, 3, 4, 5, 6]
    arrived = [torch.empty(count) for count in counts]
    transfers = [dist.P2POp(dist.isend, _drawn(rank + count, (count,)), following, group=group) for count in counts]
    transfers += [dist.P2POp(dist.irecv, tensor, previous, group=group) for tensor in arrived]
    for transfer in dist.batch_isend_irecv(transfers):
        transfer.wait()
    for count, tensor in zip(counts, arrived, strict=True):
        _same(tensor, _drawn(previous + count, (count,)), count)


def _other_sizes(rank: int, pair: Any) -> None:
    """Ranks that bring tensors of different sizes are told so; the groups are of no use any more."""
    own, everyone = dist.get_rank(pair), dist.get_process_group_ranks(pair)
    if own == 0:
        dist.send(torch.ones(2), everyone[1], group=pair)
    else:
        with pytest.raises(RuntimeError, match=r"Rank 0 of a process group has 8 bytes .* where this rank has 12"):
            dist.recv(torch.ones(3), everyone[0], group=pair)
    with pytest.raises(RuntimeError, match="disagree about a shape"):
        dist.all_reduce(torch.ones(1 + rank))


def _everything(rank: int) -> bool:
    pairs = [[0, 1], [2, 3]]
    pair = dist.new_group(pairs[rank // 2], use_local_synchronization=True)
    others = [dist.new_group(ranks, backend="gloo") for ranks in ([0, 1, 2, 3], *pairs)]
    for group, gloo in ((None, others[0]), (pair, others[1 + rank // 2])):
        group = group or dist.group.WORLD
        assert isinstance(group, memory.MemoryGroup) and not isinstance(gloo, memory.MemoryGroup)
        _reductions(rank, group, gloo)
        _copies(rank, group)
        _in_flight(rank, group)
        _mail(rank, group)
    _other_sizes(rank, pair)
    return True


def test_every_message_brings_what_gloo_brings() -> None:
    before = os.listdir("/dev/shm")
    assert run_ranks(_everything, 4) == [True] * 4
    assert os.listdir("/dev/shm") == before, "the room has no name"


def _lost(rank: int) -> tuple[str, str, str]:
    """Rank 1 is late, then rank 2 is killed; what the others are told, and how long the lost one took to be missed."""
    hasty = dist.new_group([0, 1], timeout=timedelta(seconds=0.3))
    late = ""
    if rank == 0:
        with pytest.raises(RuntimeError) as found:
            dist.all_reduce(torch.ones(3), group=hasty)
        late = str(found.value)
    dist.barrier()
    if rank == 2:
        dist.send(torch.ones(3), 1)
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1:
        time.sleep(0.3)
        kept = torch.zeros(3)
        dist.recv(kept, 2)
        assert kept.sum() == 3, "what a rank has sent arrives, whatever became of it"
    begin = time.monotonic()
    with pytest.raises(RuntimeError) as gone:
        dist.barrier()
    assert time.monotonic() - begin < 10
    peer = runtime.lost_peer(gone.value)
    return late, str(gone.value), str(peer)


def test_a_rank_that_is_late_and_one_that_is_killed() -> None:
    def outcome(rank: int) -> None:
        late, gone, peer = _lost(rank)
        assert "Connection closed by peer: the process of rank 2 has ended" in gone and "A rank was lost" in peer
        assert (rank == 0) == ("Timed out waiting 300ms for rank 1" in late)

    assert exit_codes(outcome, 3) == [0, 0, -signal.SIGKILL]


def _lost_in_turn(rank: int) -> str:
    """Rank 3 is killed; 2 waits for it alone and ends, 1 for 2, 0 for 1: what each says."""
    pairs = [dist.new_group([first, first + 1]) for first in range(3)]
    dist.barrier()
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as gone:
        dist.all_reduce(torch.ones(3), group=pairs[rank])
    assert f"rank {rank + 1} has ended" in str(gone.value)
    return str(runtime.lost_peer(gone.value, "It begins again."))


def test_the_rank_that_fell_first_is_named() -> None:
    def outcome(rank: int) -> None:
        assert _lost_in_turn(rank).endswith("the process of rank 3 has ended. It begins again.")

    assert exit_codes(outcome, 4) == [0, 0, 0, -signal.SIGKILL]


def _kinds(rank: int, folder: str) -> list[str]:
    """The group that is made in each of `CASES`."""
    found = []
    for number, (switched_on, name, value) in enumerate(CASES):
        dist.destroy_process_group()
        store = dist.FileStore(f"{folder}/{number}", 2)
        with _patched(meeting, name, value if rank == 1 or name == "MOST_RANKS" else None):
            dist.init_process_group(runtime.cpu_backend(switched_on), store=store, rank=rank, world_size=2)
            found.append(type(dist.new_group([0, 1])).__name__)
        one = torch.ones(1)
        dist.all_reduce(one)
        assert one == 2
    return found


def _refused(*_: object) -> Room:
    raise PermissionError("another user")


#: parallel.shared_memory, and what rank 1 finds instead of a name of `meeting`; all ranks, where there are too many.
CASES: list[tuple[bool, str, Any]] = [
    (True, "Room", _refused),
    (True, "available", lambda: False),  # another machine, or no kernels
    (True, "MOST_RANKS", 1),
    (False, "", None),
    (True, "", None),
]


@contextmanager
def _patched(module: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if value is not None:
            patch.setattr(module, name, value)
        yield


def test_ranks_without_shared_memory_use_gloo(tmp_path: Path) -> None:
    assert run_ranks(_kinds, 2, str(tmp_path)) == [["ProcessGroup"] * 4 + ["MemoryGroup"]] * 2
