"""Megatron-core as this package finds it: the version that is installed, and a machine without CUDA.

Importing it imports Megatron-core, without torch's compiler and without Weights & Biases.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gipo_mc.parallel.imports import compiler


@contextmanager
def _not_installed(name: str) -> Iterator[None]:
    """For imports: a library that is not imported yet is not found."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


# Megatron imports W&B wherever it is, for the counters of an inference server: a tenth of what a start takes.
with compiler.left_out(), _not_installed("wandb"):
    importlib.import_module("megatron.core")
