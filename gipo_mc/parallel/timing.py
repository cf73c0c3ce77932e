"""What the phases of an iteration cost: wall-clock time, under the names that published systems report, and padding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from gipo_mc.parallel.layout import Layout


class Phases:
    """Seconds by phase of one iteration. `with phases("rollout"): ...`; GPU work is waited for at the end of each.

    apart: name of a phase that lies inside the others -> its seconds so far; they are not counted in the others.
    padding: share of padding among the tokens that the phases run, set by their code.
    """

    def __init__(self, layout: Layout, apart: Mapping[str, Callable[[], float]] | None = None) -> None:
        self._cuda = layout.device.type == "cuda"
        self._apart = dict(apart or {})
        self._before = {name: seconds() for name, seconds in self._apart.items()}
        self._begin = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.padding: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = self._clock()
        yield
        if self._cuda:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - begin

    def _clock(self) -> float:
        """Seconds that stand still while a phase apart runs."""
        return time.perf_counter() - sum(seconds() for seconds in self._apart.values())

    def metrics(self) -> dict[str, float]:
        """ "time/<phase>" of every phase, "time/total", and "padding/<phase>" where it is known."""
        total = time.perf_counter() - self._begin
        apart = {name: seconds() - self._before[name] for name, seconds in self._apart.items()}
        metrics = {f"time/{name}": value for name, value in (self.seconds | apart | {"total": total}).items()}
        return metrics | {f"padding/{name}": value for name, value in self.padding.items()}
