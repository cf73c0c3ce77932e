"""What the phases of an iteration cost: wall-clock time, under the names that published systems report, and padding."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gipo_mc.parallel.layout import Layout


class Phases:
    """Seconds by phase of one iteration. `with phases("rollout"): ...`; GPU work is waited for at the end of each.

    padding: share of padding among the tokens that the phases run, set by their code.
    """

    def __init__(self, layout: Layout) -> None:
        self._cuda = layout.device.type == "cuda"
        self._begin = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.padding: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if self._cuda:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def metrics(self) -> dict[str, float]:
        """ "time/<phase>" of every phase, "time/total", and "padding/<phase>" where it is known."""
        total = time.perf_counter() - self._begin
        metrics = {f"time/{name}": value for name, value in (self.seconds | {"total": total}).items()}
        return metrics | {f"padding/{name}": value for name, value in self.padding.items()}
