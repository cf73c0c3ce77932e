"""Movers: contents come back, memory is free in between, errors are sentences, and nothing is left behind."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import threading
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.errors import StorageError
from gipo_mc.parallel.memory.movers import FileMover, Mover, PinnedMover


class _Stream:
    """What a mover asks of a CUDA stream; notes the order. Its work is done at once."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def wait_stream(self, other: object) -> None:
        self.said.append("wait for the caller's work")

    def record_event(self) -> Any:
        self.said.append("event")
        return types.SimpleNamespace(synchronize=lambda: self.said.append("synchronize"))

    def synchronize(self) -> None:
        self.said.append("synchronize")


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"CUDA error {code}")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for CUDA's runtime, as far as a mover sees it."""
    said: list[str] = []

    @contextmanager
    def stream(of: _Stream) -> Iterator[None]:
        said.append("copies")
        yield

    def register(address: int, size: int, flags: int) -> int:
        said.append(f"lock {size}")
        return 0

    runtime = types.SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=lambda address: said.append("unlock") or 0
    )
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: _Stream(said))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the caller's")
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", _check)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, of: said.append("keep until copied"))
    return said


def _there_and_back(mover: Mover) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    views, alone = (whole[1], whole.t()), torch.arange(5, dtype=torch.bfloat16)
    expected = [tensor.clone() for tensor in (whole, *views, alone)]
    storages = [whole.untyped_storage(), alone.untyped_storage()]
    copy = mover.room("the weights of x", storages)
    assert copy.size == 24 * 4 + 5 * 2
    for factor in (1, 2):
        copy.save().wait()
        assert [storage.nbytes() for storage in storages] == [0, 0]
        copy.load().wait()
        found = (whole, *views, alone)
        assert all(torch.equal(tensor, value * factor) for tensor, value in zip(found, expected, strict=True))
        whole *= 2
        alone *= 2
    mover.close()


def test_files_give_back_the_same_bits_to_every_view(tmp_path: Path) -> None:
    before = threading.active_count()
    _there_and_back(FileMover(tmp_path))
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == before


def test_pinned_memory_gives_back_the_same_bits_in_the_order_of_streams(said: list[str]) -> None:
    _there_and_back(PinnedMover(torch.device("cpu")))
    out = ["wait for the caller's work", "copies", "keep until copied", "keep until copied", "event", "synchronize"]
    back = ["wait for the caller's work", "copies", "event", "synchronize"]
    assert said == ["lock 106", *out, *back, *out, *back, "synchronize", "unlock"]


def test_a_queue_runs_in_order_while_its_caller_goes_on(tmp_path: Path) -> None:
    mover, tensor = FileMover(tmp_path), torch.ones(1000)
    copy = mover.room("x", [tensor.untyped_storage()])
    moves = [copy.save(), copy.load(), copy.save(), copy.load()]
    moves[-1].wait()
    assert torch.equal(tensor, torch.ones(1000))
    mover.close()


def _in_a_process(work: Any) -> int:
    """Its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_a_killed_run_leaves_no_file(tmp_path: Path) -> None:
    def work() -> None:
        tensor = torch.ones(1000)
        FileMover(tmp_path).room("x", [tensor.untyped_storage()]).save().wait()
        os.kill(os.getpid(), signal.SIGKILL)

    assert _in_a_process(work) == signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_sentence_and_found_before_anything_moves(tmp_path: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        tensor: Tensor = torch.ones(1000)
        try:
            FileMover(tmp_path).room("the weights of models/x (lm)", [tensor.untyped_storage()])
        except StorageError as error:
            (tmp_path / "said").write_text(str(error))
            os._exit(0 if tensor.sum() == 1000 else 2)

    assert _in_a_process(work) == 0
    text = (tmp_path / "said").read_text()
    assert "memory.offload cannot put the weights of models/x (lm) (4,000 bytes)" in text and str(tmp_path) in text
    assert "Free space on that disk" in text


def test_memory_that_cannot_be_locked_is_a_sentence(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = types.SimpleNamespace(cudaHostRegister=lambda *of: 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: refuses)
    tensor = torch.ones(1000)
    with pytest.raises(StorageError, match="cannot lock 4,000 bytes of host memory for x"):
        PinnedMover(torch.device("cpu")).room("x", [tensor.untyped_storage()])


@pytest.mark.parametrize("pinned", [False, True])
def test_a_copy_that_was_replaced_holds_nothing(tmp_path: Path, said: list[str], pinned: bool) -> None:
    """It holds the storages that it is of: an optimizer that was given new tensors would be there twice."""
    mover: Mover = PinnedMover(torch.device("cpu")) if pinned else FileMover(tmp_path)
    copy = mover.room("x", [torch.ones(1000).untyped_storage()])
    gone = weakref.ref(copy)
    copy.close()
    del copy
    assert gone() is None
    mover.close()


def test_locked_memory_is_not_in_a_fork(said: list[str]) -> None:
    """The system copies pages that a device may write to when the process forks, not when they change."""
    copy: Any = PinnedMover(torch.device("cpu")).room("x", [torch.ones(1000).untyped_storage()])
    first = f"{copy._host.data_ptr():x}-"
    areas = Path("/proc/self/smaps").read_text().split("VmFlags:")
    flags = [after for area, after in itertools.pairwise(areas) if f"\n{first}" in area]
    assert len(flags) == 1 and "dc" in flags[0].splitlines()[0].split()
