"""Megatron-core as this package finds it: the version that is installed, and a machine without CUDA.

Importing it imports Megatron-core, with the compiler left out. Megatron hands dozens of functions to `torch.compile` as
it is imported, and the first of them imports torch's whole compiler, half of what a start takes; on a CPU none of them
is ever called. Here each is handed over at its first call.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch


def compiled_when_called(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """`torch.compile` as a decorator, with or without options, that does nothing before the first call."""
    if function is None:
        return partial(compiled_when_called, **options)
    compiled: Callable[..., Any] | None = None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = torch.compile(function, **options)
        return compiled(*args, **kwargs)

    return call


def _import_megatron() -> None:
    eager = torch.compile
    torch.compile = compiled_when_called  # type: ignore[assignment]
    try:
        importlib.import_module("megatron.core")
    finally:
        torch.compile = eager


if "megatron.core" not in sys.modules:
    _import_megatron()
