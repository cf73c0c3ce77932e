"""Memory that tensors on the CPU have freed is kept for the next ones."""

from __future__ import annotations

import ctypes
import platform
import resource

import pytest
import torch

from gipo_mc.config import ParallelConfig
from gipo_mc.parallel import runtime
from gipo_mc.parallel.memory import heap
from tests.ranks import run_ranks


def _faults(rank: int) -> int:
    """Pages that the system gave for tensors that are made and freed, the first times left out."""
    runtime.initialize(ParallelConfig(), "cpu")
    before = 0
    for turn in range(7):
        if turn == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2**18) for _ in range(32)]  # of 256 pages each
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep what they like")
def test_tensors_are_made_of_what_others_have_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in heap._CHOSEN:
        monkeypatch.delenv(name, raising=False)
    assert run_ranks(_faults, 1)[0] < 1000  # of the 32,768 that they need; all of them, where glibc gives them back


def test_who_has_chosen_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    monkeypatch.setattr(ctypes, "CDLL", None)
    heap.keep_freed()
