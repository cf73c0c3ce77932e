"""Megatron's sharded checkpoints on disk: each rank writes its own shards, any layout reads them."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async


def write(sharded: dict[str, Any], folder: Path) -> None:
    """Save sharded state in an existing, empty folder; every rank calls it. Errors are those of Megatron and torch."""
    # Megatron would start a manager process a rank to hand results over, for saves in the background: this one is not,
    # and that process would import everything anew and outlive a rank that is killed.
    filesystem_async._results_queue = queue.Queue()
    dist_checkpointing.save(sharded, str(folder))


def read(sharded: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill sharded state from a folder that `write` filled, in this or another layout; every rank calls it."""
    loaded: dict[str, Any] = dist_checkpointing.load(sharded, str(folder))
    return loaded
