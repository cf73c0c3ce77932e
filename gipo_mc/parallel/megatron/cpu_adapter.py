"""The only place that adapts Megatron-core to the CPU. Applied when the device is CPU, never on CUDA.

Megatron-core hard-codes CUDA in a few places of its schedules, pipeline communication, random state and optimizer.
None of them needs a GPU: they ask "which device?" or "which generator?". Each patch below answers for the CPU, and
each names its reason. `PATCHED` lists every replaced attribute, and a test checks that Megatron and torch still have
them, so that an upgrade that moves one fails in the tests and not in a user's run.

Two kinds of patches: functions of `torch.cuda` and `Tensor`, replaced for the whole process; and, for modules that
write `device="cuda"` into tensor factories, the name `torch` as that one module sees it (a view of torch whose
factories map "cuda" to "cpu"), so that nothing else is slowed down or surprised.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from gipo_mc.parallel.megatron.versions import CURRENT_STREAM

#: What takes CUDA's place. `pretend` lets it be the device without storage for a while.
CPU = torch.device("cpu")

#: Modules that create small tensors with device="cuda": token counters, gradient norms, overflow flags.
FACTORY_MODULES = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.optimizer",
    "megatron.core.utils",
)
FACTORIES = ("zeros", "ones", "empty", "tensor")

#: (module, attribute) of everything that `apply` replaces.
PATCHED = (
    ("torch.cuda", "current_device"),
    ("torch.cuda", "synchronize"),
    ("torch.cuda", "manual_seed"),
    ("torch.cuda", "get_rng_state"),
    *([("torch.cuda", "current_stream")] if CURRENT_STREAM.here else []),
    ("torch", "Tensor.cuda"),
    ("torch", "Tensor.type"),
    ("torch.nn", "Module.cuda"),
    ("megatron.core.tensor_parallel.random", "_get_cuda_rng_state"),
    ("megatron.core.tensor_parallel.random", "_set_cuda_rng_state"),
    *((module, "torch") for module in FACTORY_MODULES),
)

_applied = False


class _TorchOnCpu(ModuleType):
    """torch as a Megatron module sees it: everything is torch's, but factories put "cuda" tensors on the CPU."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def create(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return factory(*args, device=CPU if device is not None else None, **kwargs)

    return create


def apply() -> None:
    """Replace everything in `PATCHED`. Idempotent."""
    global _applied
    if _applied:
        return
    _applied = True

    # Asked for as `device=torch.cuda.current_device()` by mappings, layers, p2p and param buffers.
    torch.cuda.current_device = lambda: CPU  # type: ignore[assignment,return-value]
    # Called around batched point-to-point and in buffer management; the CPU has nothing to wait for.
    torch.cuda.synchronize = lambda device=None: None  # type: ignore[assignment]
    # The tensor-parallel random tracker keeps "CUDA" states: let it keep those of the CPU generator.
    torch.cuda.manual_seed = lambda seed: torch.random.default_generator.manual_seed(int(seed)) and None  # type: ignore[assignment]
    torch.cuda.get_rng_state = lambda device="cpu": torch.random.default_generator.get_state()  # type: ignore[assignment]
    # The stream that gradients are synchronised on; nothing is ever asked to wait for it.
    if CURRENT_STREAM.here:
        torch.cuda.current_stream = lambda device=None: None  # type: ignore[assignment,return-value]
    # Counters and norms are moved with .cuda(); they are where they belong already.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[assignment,method-assign]
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[assignment,method-assign]

    # The mixed-precision optimizer checks `param.type() == "torch.cuda.FloatTensor"`.
    plain_type = torch.Tensor.type

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return plain_type(self, *args, **kwargs)
        return f"torch.cuda.{plain_type(self).rpartition('.')[2]}"

    torch.Tensor.type = type_  # type: ignore[assignment,method-assign]

    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = lambda device="cpu", clone=False, graph_safe=False: (
        torch.random.default_generator.get_state()
    )
    random._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: (
        torch.random.default_generator.set_state(new_state)
    )

    for name in FACTORY_MODULES:
        importlib.import_module(name).torch = _TorchOnCpu()  # type: ignore[attr-defined]
