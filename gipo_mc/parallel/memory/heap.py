"""What a process on the CPU does with memory that tensors have freed."""

from __future__ import annotations

import ctypes
import os

#: Of mallopt, as glibc's malloc.h numbers them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Freed memory of up to so many bytes at the end of the heap is kept.
_KEPT = 256 * 2**20
#: Smaller tensors lie on the heap; larger ones are given back when they are freed. The most that glibc takes.
_LARGE = 32 * 2**20
#: Variables with which a user has chosen otherwise.
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> None:
    """Let malloc keep what tensors have freed, for the next ones.

    By itself glibc gives most of it back to the system, and takes it anew for the next micro-batch: the system fills
    each page with zeros, which takes longer than what is computed on it. Does nothing where malloc is not glibc's.
    """
    if any(name in os.environ for name in _CHOSEN):
        return
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(_TRIM_THRESHOLD, _KEPT)
        choose(_MMAP_THRESHOLD, _LARGE)
