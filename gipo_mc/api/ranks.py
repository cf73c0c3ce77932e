"""The process group that everything of the library in this process shares: made with the first, gone with the last.

A plain Python process is a job of one rank that opens no connection. Under torchrun all ranks make the same calls. A
group that the program had before is used, and left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch.distributed as dist

from gipo_mc.config import Config, check_layout
from gipo_mc.errors import ConfigError
from gipo_mc.parallel import news, runtime
from gipo_mc.parallel.launcher import adopt_slurm, suit_cuda, world_size
from gipo_mc.parallel.layout import Layout

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16"]

_holders = 0
_was_there = False
_sizes = (1, 1)


def acquire(config: Config) -> Layout:
    """Join the ranks, once for each `release`. Raises ConfigError where the layout does not fit the ranks, or is not
    that of what is open."""
    _hold(config, "generate")
    try:
        return runtime.initialize(config.parallel, config.device)
    except BaseException:
        release()
        raise


def _hold(config: Config, command: str) -> None:
    global _holders, _was_there, _sizes
    adopt_slurm()
    check_layout(config, world_size(), command)
    suit_cuda(config)
    sizes = (config.parallel.tensor, config.parallel.pipeline)
    if _holders and sizes != _sizes:
        raise ConfigError(
            f"parallel.tensor={sizes[0]} and parallel.pipeline={sizes[1]} differ from those of what is open in this "
            f"process, {_sizes[0]} and {_sizes[1]}: close that first."
        )
    if not _holders:
        _was_there = dist.is_initialized()
    _holders, _sizes = _holders + 1, sizes


def release() -> None:
    """Undo one `acquire`. With the last one the groups are left."""
    global _holders
    _holders -= 1
    if not _holders:
        runtime.shutdown(keep_ranks=_was_there)


@contextmanager
def held(config: Config, command: str) -> Iterator[None]:
    """Around `command`, which joins the ranks by itself: what it joined is left, whatever ends it. Raises as
    `acquire`."""
    _hold(config, command)
    news.new_job()
    try:
        yield
    finally:
        release()


def enough(rows: list[T], layout: Layout) -> list[T]:
    """The rows, with the last one repeated until every data-parallel rank has one; what comes of those is cut off."""
    return rows + rows[-1:] * (layout.data - len(rows))
