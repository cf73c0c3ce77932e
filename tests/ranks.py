"""Run a test function on several ranks: forked processes (a fork of a process that has imported torch starts in
0.1 s), the backend that jobs on a CPU have, a file as rendezvous, one thread a rank. The first failing rank's
traceback fails the test."""

from __future__ import annotations

import gc
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from gipo_mc.config import ParallelConfig
from gipo_mc.parallel.runtime import cpu_backend

LAYOUTS: dict[str, dict[str, Any]] = {
    "1": {},
    "TP2": {"tensor": 2},
    "PP2": {"pipeline": 2},
    "TP2xPP2": {"tensor": 2, "pipeline": 2},
    "DP2": {"data": 2},
    "TP2+SP": {"tensor": 2, "sequence": True},
}


def parallel_config(**layout: Any) -> tuple[ParallelConfig, int]:
    """(configuration, ranks it needs) of one of `LAYOUTS`."""
    data = layout.pop("data", 1)
    config = ParallelConfig(timeout_minutes=2, **layout)
    return config, config.tensor * config.pipeline * data


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 240.0) -> list[Any]:
    """Call `fn(rank, *args)` on `world_size` ranks; their return values (picklable) in rank order.

    The default process group is initialised; `fn` builds Megatron's groups itself with
    `gipo_mc.parallel.runtime.initialize` if it wants them.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = _started(fn, world_size, folder, args)
        returned: dict[int, Any] = {}
        try:
            deadline = time.monotonic() + timeout
            while any(process.is_alive() for process in processes):
                if any(process.exitcode for process in processes):
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"a rank did not finish within {timeout:.0f} s")
                time.sleep(0.01)
            failures = sorted(Path(folder).glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
            if failures:
                raise AssertionError(f"{failures[0].name}:\n{failures[0].read_text()}")
            codes = [process.exitcode for process in processes]
            assert codes == [0] * world_size, f"exit codes of the ranks: {codes}"
            for rank in range(world_size):
                returned[rank] = torch.load(Path(folder) / f"result-{rank}", weights_only=False)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
    return [returned[rank] for rank in range(world_size)]


def _started(fn: Callable[..., Any], world_size: int, folder: str, args: tuple[Any, ...]) -> list[Any]:
    context = mp.get_context("fork")
    processes = [context.Process(target=_rank, args=(fn, rank, world_size, folder, args)) for rank in range(world_size)]
    for process in processes:
        process.start()
    return processes


def exit_codes(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60.0) -> list[int | None]:
    """As `run_ranks`, for ranks that end by themselves: their exit codes, in rank order; None for one that does not."""
    with tempfile.TemporaryDirectory() as folder:
        processes = _started(fn, world_size, folder, args)
        deadline = time.monotonic() + timeout
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
    return codes


def _rank(fn: Callable[..., Any], rank: int, world_size: int, folder: str, args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size)
    )
    torch.set_num_threads(1)
    gc.freeze()  # a collection would walk, and copy the pages of, all that the parent imported: 0.3 s each
    try:
        torch.distributed.init_process_group(
            cpu_backend(True), init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
        )
        Path(folder, f"joined-{rank}").touch()
        result = fn(rank, *args)
        torch.save(result, Path(folder) / f"result-{rank}")
        # A rank that is gone while another still connects to it would fail that one.
        while not all(Path(folder, f"joined-{other}").exists() for other in range(world_size)):
            time.sleep(0.01)
    except BaseException:
        Path(folder, f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
