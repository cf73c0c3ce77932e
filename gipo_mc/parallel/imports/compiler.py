"""Importing libraries without torch's compiler, which they hand functions to as they are imported.

The first function that is handed over imports the whole compiler: a fifth of what a start takes. On a CPU none of these
functions is ever called compiled. Here each is handed over at its first call.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch


def when_called(decorate: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator, used with or without options, that does nothing before the first call of what it decorates."""

    def decorator(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if function is None:
            return partial(decorator, **options)
        decorated: Callable[..., Any] | None = None

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal decorated
            if decorated is None:
                decorated = decorate(function, **options)
            return decorated(*args, **kwargs)

        return call

    return decorator


@contextmanager
def left_out() -> Iterator[None]:
    """For imports: `torch.compile` and `torch.compiler.disable` wait for the first call of a function."""
    compile_, disable, collects = torch.compile, torch.compiler.disable, gc.isenabled()
    torch.compile, torch.compiler.disable = when_called(compile_), when_called(disable)  # type: ignore[assignment]
    gc.disable()  # what modules are made of stays: looking through it for garbage takes a sixth of an import
    try:
        yield
    finally:
        torch.compile, torch.compiler.disable = compile_, disable
        if collects:
            gc.enable()
