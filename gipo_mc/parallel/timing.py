"""What the phases of an iteration cost: wall-clock time, under the names that published systems report, and padding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from gipo_mc.parallel.layout import Layout

#: f(steps done, of how many).
Tell = Callable[[int, int], None]


def _silent(done: int, of: int) -> None:
    """Nobody looks."""


class Phases:
    """Seconds by phase of one iteration. `with phases("rollout", 64) as tell: ...`; GPU work is waited for at the end.

    shown: what shows a phase while it goes on, such as `Console.share`; it is given its name and how many units it has,
    where that is known, and its f(done, of) is what `tell` calls.
    apart: name of a phase that lies inside the others -> its seconds so far; they are not counted in the others.
    padding: share of padding among the tokens that the phases run, set by their code.
    """

    def __init__(
        self,
        layout: Layout,
        apart: Mapping[str, Callable[[], float]] | None = None,
        shown: Callable[[str, int | None], AbstractContextManager[Tell]] = lambda name, total: nullcontext(_silent),
    ) -> None:
        self._shown = shown
        self._cuda = layout.device.type == "cuda"
        self._apart = dict(apart or {})
        self._before = {name: seconds() for name, seconds in self._apart.items()}
        self._begin = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.padding: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, total: int | None = None) -> Iterator[Tell]:
        begin = self._clock()
        with self._shown(name.replace("_", " "), total) as tell:
            yield tell
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
