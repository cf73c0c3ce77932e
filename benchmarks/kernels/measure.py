"""One case measured: every implementation on the same inputs, in interleaved rounds, with its error and its memory.

What is timed is one forward pass and one backward pass with given gradients of the outputs. Inputs are written anew
before each of them, untimed, because some implementations write over them (ours on request, Megatron's in float32,
Liger's always); all get the same tensors and the same non-leaf logits.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import timing

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Rival:
    """One implementation. forward: the case's inputs -> outputs by name; those without a given gradient are only
    compared. note: what it does not give, or what must be known to read its figures."""

    name: str
    forward: Callable[[Tensors], Tensors]
    note: str = ""
    ours: bool = False


@dataclass(frozen=True)
class NotRun:
    """An implementation that cannot run here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Case:
    """inputs: makes them anew, untimed. wanted: inputs whose gradients are taken. upstream: gradients of the outputs.
    truth: the float64 outputs and gradients ("d <input>") for a set of differentiated outputs, possibly of the first
    rows only. floor: fewest bytes moved, forward and backward. clocks: "wall", "again" (wall time
    right after an untimed pass: code and threads are warm), "queued" or "graph"."""

    op: str
    dtype: torch.dtype
    shape: dict[str, int]
    device: torch.device
    inputs: Callable[[], Tensors]
    wanted: tuple[str, ...]
    upstream: Tensors
    truth: Callable[[frozenset[str]], Tensors]
    floor: tuple[int, int]
    rivals: list[Rival | NotRun]
    clocks: tuple[str, ...] = ("wall",)


@dataclass
class _Pass:
    """A forward and a backward pass of one rival over one set of inputs."""

    case: Case
    rival: Rival
    given: Tensors = field(default_factory=dict)
    outputs: Tensors = field(default_factory=dict)
    gradients: Tensors = field(default_factory=dict)

    def renew(self) -> None:
        self.outputs, self.gradients = {}, {}
        self.given = self.case.inputs()

    def forward(self) -> None:
        self.outputs = self.rival.forward(self.given)

    def backward(self) -> None:
        if not self.case.wanted:
            return
        names = [name for name in self.outputs if name in self.case.upstream]
        found = torch.autograd.grad(
            [self.outputs[name] for name in names],
            [self.given[name] for name in self.case.wanted],
            [self.case.upstream[name].to(self.outputs[name].dtype) for name in names],
            allow_unused=True,
        )
        self.gradients = {f"d {name}": g for name, g in zip(self.case.wanted, found, strict=True) if g is not None}

    def both(self) -> None:
        self.forward()
        self.backward()

    def results(self) -> Tensors:
        return {name: x.detach() for name, x in (self.outputs | self.gradients).items()}


def measure(case: Case, rounds: int, repeats: int, bandwidth: timing.Bandwidth) -> dict[str, Any]:
    """The case's part of the record: one entry for each rival and clock, ours first to fail loudly where it cannot run.

    rounds: timed passes of each; repeats: passes of each of ours whose results must equal the first bit for bit.
    """
    runs: list[dict[str, Any]] = []
    ready: list[tuple[dict[str, Any], Callable[[], list[float]]]] = []
    for rival in case.rivals:
        if isinstance(rival, NotRun):
            runs.append({"name": rival.name, "ours": False, "status": "not run", "reason": rival.reason})
            continue
        for clock in case.clocks:
            try:
                entry, seconds = _prepared(case, rival, clock, repeats)
            except Exception as error:
                # A rival that fails is reported with its error; ours must not fail.
                if rival.ours:
                    raise
                lines = str(error).strip().splitlines() or [""]
                reason = f"{type(error).__name__}: {lines[0][:200]}"
                entry, seconds = {"name": rival.name, "ours": False, "status": "not run", "reason": reason}, None
            runs.append({"clock": clock, **entry})
            if seconds is not None:
                ready.append((runs[-1], seconds))
    copies, reads = len(bandwidth.copies), len(bandwidth.reads)
    for turn in range(rounds):
        bandwidth.measure()
        for k in range(len(ready)):
            entry, seconds = ready[(k + turn) % len(ready)]
            forward, backward = seconds()
            entry["forward_s"].append(forward)
            entry["backward_s"].append(backward)
    for entry, _ in ready:
        total = [a + b for a, b in zip(entry["forward_s"], entry["backward_s"], strict=True)]
        entry["seconds"] = {
            "forward": statistics.median(entry["forward_s"]),
            "backward": statistics.median(entry["backward_s"]),
            "both": statistics.median(total),
            "least": min(total),
        }
    return {
        "op": case.op,
        "dtype": str(case.dtype).removeprefix("torch."),
        "shape": case.shape,
        "differentiated": bool(case.wanted),
        "floor_bytes": {"forward": case.floor[0], "backward": case.floor[1]},
        "copy_bytes_per_s": statistics.median(bandwidth.copies[copies:]),
        "read_bytes_per_s": statistics.median(bandwidth.reads[reads:]),
        "rounding_error": _rounding(case, ready[0][0]["gives"]),
        "runs": runs,
    }


def _prepared(case: Case, rival: Rival, clock: str, repeats: int) -> tuple[dict[str, Any], Callable[[], list[float]]]:
    """Entry without times, and what takes one sample; the warm-up, error, memory and repeats are done here."""
    run = _Pass(case, rival)
    run.renew()
    begin = time.perf_counter()
    run.both()
    timing.synchronize(case.device)
    first = time.perf_counter() - begin
    entry: dict[str, Any] = {
        "name": rival.name,
        "ours": rival.ours,
        "status": "ran",
        "note": rival.note,
        "gives": sorted(run.outputs),
        "first_call_s": first,
        "errors": _errors(case, run.results(), frozenset(name for name in run.outputs if name in case.upstream)),
        "forward_s": [],
        "backward_s": [],
    }
    if rival.ours:
        entry["bitwise"] = {"repeats": repeats, "equal": _repeats(run, repeats)}
    run.renew()
    entry["extra_bytes"] = timing.peak_extra_bytes(run.both, case.device)
    if clock == "graph":
        run.renew()
        return entry, timing.Replay((run.forward, run.backward), case.device, run.renew).seconds
    run.outputs, run.gradients = {}, {}

    def sample() -> list[float]:
        if clock == "again":
            run.renew()
            run.both()
        run.renew()
        gc.disable()
        try:
            return (timing.queued if clock == "queued" else timing.wall)((run.forward, run.backward), case.device)
        finally:
            gc.enable()
            run.outputs, run.gradients = {}, {}

    return entry, sample


def _repeats(run: _Pass, repeats: int) -> bool:
    run.renew()
    run.both()
    first = {name: x.clone() for name, x in run.results().items()}
    for _ in range(repeats):
        run.renew()
        run.both()
        if not all(torch.equal(x, first[name]) for name, x in run.results().items()):
            return False
    return True


def _errors(case: Case, results: Tensors, differentiated: frozenset[str]) -> dict[str, float]:
    """Largest error of each result over the largest true value of it; results without a truth are left out."""
    truth = case.truth(differentiated)
    return {name: _error(x, truth[name]) for name, x in results.items() if name in truth}


def _error(found: Tensor, true: Tensor) -> float:
    if true.dim():
        found = found[: len(true)]
    true = true.to(found.device)
    return float((found.double() - true).abs().max() / true.abs().max())


def _rounding(case: Case, given: list[str]) -> dict[str, float]:
    """The error of the float64 gradients of these outputs, once rounded to their type: no implementation has less."""
    if not case.wanted:
        return {}
    truth = case.truth(frozenset(given) & frozenset(case.upstream))
    return {name: _error(x.to(case.dtype), x) for name, x in truth.items() if name.startswith("d ")}
