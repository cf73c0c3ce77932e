"""TransformerEngine as it is on this machine: tried by importing it, because a package that is there may not load.

Its wheels are built against one CUDA and one torch, and Megatron-core takes a range of its versions. Where any of it
does not fit, Megatron's own layers run instead, and `problem` says why.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

NOT_INSTALLED = "not installed"


@cache
def problem() -> str:
    """Why TransformerEngine cannot be used, in a few words; "" where it can. Imports it."""
    if importlib.util.find_spec("transformer_engine") is None:
        return NOT_INSTALLED
    try:
        importlib.import_module("transformer_engine.pytorch")
        _extension()
    except Exception as error:  # a library that does not fit raises whatever its loader does
        text = str(error).strip() or "no reason given"
        return f"it cannot be imported ({type(error).__name__}: {text.splitlines()[0]})"
    return ""


def warning(device: torch.device) -> str:
    """A sentence where TransformerEngine was installed for this machine, and cannot be used; else ""."""
    reason = problem() if device.type == "cuda" else ""
    if reason in ("", NOT_INSTALLED):
        return ""
    return (
        f"TransformerEngine is here and is not used, because {reason}: Megatron-core's own layers run instead, slower. "
        "Install one that fits this torch and CUDA: pip install -e '.[te]'."
    )


def linears() -> tuple[type[Any], type[Any]]:
    """(norm and column-parallel linear in one, row-parallel linear): Megatron's wrappers of TransformerEngine's layers,
    which add their weight gradients to Megatron's float32 buffer in the matrix product itself.

    Megatron has one switch for that, and its own linears need Apex for it: so these two get a configuration of their
    own, in which it is on.
    """
    extension = _extension()
    return _fused(extension.TELayerNormColumnParallelLinear), _fused(extension.TERowParallelLinear)


def _extension() -> Any:
    found = importlib.import_module("megatron.core.extensions.transformer_engine")
    if not found.HAVE_TE:
        raise ImportError("Megatron-core does not take this version")
    return found


@cache
def _fused(linear: type[Any]) -> type[Any]:
    class Fused(linear):  # type: ignore[misc]
        def __init__(self, *sizes: Any, config: TransformerConfig, **options: Any) -> None:
            own = copy.copy(config)
            own.gradient_accumulation_fusion = True
            super().__init__(*sizes, config=own, **options)

    Fused.__name__ = Fused.__qualname__ = linear.__name__
    return Fused
