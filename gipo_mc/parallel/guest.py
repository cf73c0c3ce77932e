"""A library that works inside the ranks, as vLLM does, and changes what all of the process shares."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Random states and the number of threads are the same afterwards: vLLM seeds the global generators and draws from
    them, and replaces `torch.set_num_threads` by a function that does nothing."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
