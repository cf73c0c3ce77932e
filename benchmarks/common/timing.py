"""Clocks, bandwidth and memory: how every figure of benchmarks/kernels/kernels.py is taken, on CPU and CUDA."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import torch

Steps = Sequence[Callable[[], object]]
#: GPU cycles, about 4 ms, for which the device is kept busy so that launches are queued before it reaches them.
_HEAD_START = 8_000_000
_REPLAYS = 50


def synchronize(device: torch.device) -> None:
    """Wait for the device; nothing to do on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall(steps: Steps, device: torch.device) -> list[float]:
    """Seconds of each step as its caller sees them, launches included."""
    seconds = []
    synchronize(device)
    for step in steps:
        begin = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return seconds


def queued(steps: Steps, device: torch.device) -> list[float]:
    """Seconds that the GPU takes for each step when all of them are queued, as in the middle of a training step."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
    torch.cuda._sleep(_HEAD_START)
    marks[0].record()
    for step, mark in zip(steps, marks[1:], strict=True):
        step()
        mark.record()
    synchronize(device)
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]


class Replay:
    """Each step as a CUDA graph of its own, the later ones using what the earlier ones left. The steps must neither
    synchronise nor write over their inputs. renew: makes new inputs, whose gradients belong to no stream yet."""

    def __init__(self, steps: Steps, device: torch.device, renew: Callable[[], None]) -> None:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                for step in steps:
                    step()
        torch.cuda.current_stream(device).wait_stream(side)
        synchronize(device)
        renew()
        pool = torch.cuda.graph_pool_handle()
        self.graphs, self.device = [], device
        for step in steps:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                step()
            self.graphs.append(graph)

    def seconds(self) -> list[float]:
        """Seconds of one replay of each step, the mean over a run of replays behind one another."""
        found = []
        for graph in self.graphs:
            graph.replay()
            (total,) = queued([lambda graph=graph: [graph.replay() for _ in range(_REPLAYS)]], self.device)
            found.append(total / _REPLAYS)
        return found


class Bandwidth:
    """What the memory of this machine does with the threads that torch has, on buffers far larger than a cache."""

    def __init__(self, device: torch.device, size: int) -> None:
        self.device = device
        self.source = torch.ones(size // 4, device=device)
        self.target = torch.ones(size // 4, device=device)
        self.copies: list[float] = []
        self.reads: list[float] = []

    def measure(self) -> None:
        """One more sample of each, in bytes a second: a copy counts what it reads and what it writes."""
        clock = queued if self.device.type == "cuda" else wall
        copy, read = clock((lambda: self.target.copy_(self.source), self.source.sum), self.device)
        self.copies.append(2 * self.source.nbytes / copy)
        self.reads.append(self.source.nbytes / read)


def peak_extra_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Most bytes that torch's allocator held during `step` beyond those before it.

    On the CPU what C++ code takes from the system itself is not seen; the kernels of this project keep a few KiB a
    thread on the stack and a few numbers a group.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
