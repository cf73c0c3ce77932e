"""The door to `gipo_mc._C`: loading it, choosing between it and the references, and what every call needs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from gipo_mc.errors import ConfigError

try:
    from gipo_mc import _C  # type: ignore[attr-defined]
except ImportError as error:
    _C: Any = None  # type: ignore[no-redef]
    _failure = error

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


@cache
def _say_reference() -> None:
    warnings.warn("GIPO_MC_OPS=reference: the slow eager references are used, not the kernels.", stacklevel=4)


def use_reference() -> bool:
    """True when GIPO_MC_OPS=reference asks for the eager references; says so once."""
    choice = os.environ.get("GIPO_MC_OPS", "native")
    if choice == "reference":
        _say_reference()
        return True
    if choice != "native":
        raise ValueError(f"GIPO_MC_OPS={choice}: set it to native (the default) or reference.")
    return False


def module() -> Any:
    """The extension module; an ImportError that says what to do where it is missing."""
    if _C is None:
        raise ImportError(
            f"The native kernels gipo_mc._C cannot be loaded ({_failure}). Build them with `pip install --no-deps "
            "-e .` in the root of the repository, which takes a C++ compiler, or set GIPO_MC_OPS=reference to "
            "use the slow eager references, which take none."
        ) from _failure
    return _C


def describe_build(device: str = "") -> str:
    """One line for people: which kernels the installed extension holds, and which instruction set the CPU's use.

    device: "cpu" or "cuda", to hear of what runs there alone.
    """
    info = module().build_info()
    if device == "cpu":
        return f"CPU kernels ({info['cpu']}; compiler {info['compiler']})"
    if not info["cuda"]:
        return f"CPU kernels only ({info['cpu']}; compiler {info['compiler']})"
    archs = ", ".join(f"sm_{a}" for a in info["cuda_architectures"].split(","))
    return f"CPU and CUDA kernels ({info['cpu']}; {archs}; CUDA {info['cuda_version']}, compiler {info['compiler']})"


def check_cuda() -> None:
    """Raises ConfigError where the first op on CUDA would fail for want of kernels. The references run anywhere."""
    if not use_reference() and not module().build_info()["cuda"]:
        raise ConfigError(
            "device=cuda, but gipo_mc._C was built without CUDA kernels: where nvcc is on PATH or in CUDA_HOME (module "
            "load cuda), build it again with GIPO_MC_CUDA=1 (`GIPO_MC_CUDA=1 make -B venv`), or set "
            "GIPO_MC_OPS=reference, which is slow. gipo-mc doctor --require-cuda-kernels tells it beforehand."
        )


def call(name: str, device: torch.device, *args: Any) -> None:
    """Run the CPU or CUDA kernel `name`: with the thread count of torch, or on torch's current stream."""
    extension = module()
    if device.type == "cpu":
        _cpu_kernel(extension, name)(*args, torch.get_num_threads())
        return
    kernel = getattr(extension, f"{name}_cuda", None)
    if kernel is None:
        raise RuntimeError(
            f"gipo_mc._C was built without CUDA kernels, but {name} was given a tensor on {device}. Install again with "
            "`pip install --no-deps -e .` where nvcc is on PATH or in CUDA_HOME, or set GIPO_MC_OPS=reference."
        )
    guard: AbstractContextManager[Any] = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with guard:
        kernel(*args, torch.cuda.current_stream(device).cuda_stream)


@cache
def _cpu_kernel(extension: Any, name: str) -> Callable[..., None]:
    return getattr(extension, f"{name}_cpu")  # type: ignore[no-any-return]


_SCHEMA_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float"}


def schema(*parameters: type[tuple[Any, ...]], returns: str, mutates: Sequence[str] = ()) -> str:
    """The torch schema of an op whose parameters are the fields of these NamedTuples, one after the other."""
    declared: list[str] = []
    for fields in parameters:
        for name, kind in get_type_hints(fields).items():
            alias = f"(a{len(declared)}!)" if name in mutates else ""
            declared.append(f"{_SCHEMA_TYPES[kind]}{alias} {name}")
    return f"({', '.join(declared)}) -> {returns}"


def op(
    name: str, fake: Callable[..., Any], mutates: Sequence[str] = (), schema: str | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Registers a function over tensors as the torch op gipo_mc::`name`, with `fake` for its shapes. The parameters are
    those of `schema`, or, without one, of the function's own signature.

    What is called in its place goes through torch's dispatcher only where something there has to see the op (compilers,
    modes, fake and meta tensors and other subclasses): the dispatcher takes longer than the smaller kernels. The
    version counters of what is mutated rise either way.
    """

    def register(function: Callable[..., Any]) -> Any:
        registered = torch.library.custom_op(
            f"gipo_mc::{name}", function, mutates_args=tuple(mutates), device_types=("cpu", "cuda"), schema=schema
        )
        registered.register_fake(fake)
        declared = getattr(torch.ops.gipo_mc, name).default._schema.arguments
        mutated = [place for place, argument in enumerate(declared) if argument.name in mutates]

        @wraps(function)
        def call(*arguments: Any) -> Any:
            if _to_be_seen(arguments):
                return registered(*arguments)
            for place in mutated:
                if not arguments[place].is_inference():  # those have no counter
                    torch.autograd.graph.increment_version(arguments[place])
            return function(*arguments)

        return call

    return register


def _looked_at() -> bool:
    """Does a compiler or a mode look at every op?"""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _transformed() -> bool:
    """Is this inside a transformation of functions (torch.func), or forward-mode differentiation?"""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _to_be_seen(arguments: Sequence[Any]) -> bool:
    if _looked_at():
        return True
    return any(isinstance(x, Tensor) and (x.is_meta or type(x) not in (Tensor, Parameter)) for x in arguments)


def differentiable_once(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks the backward pass of the op `name`: gradients that are to be differentiated again lead to an error. torch's
    own once_differentiable takes them for constants where the gradient that comes in has no gradient itself."""

    def mark(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def once(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
            again = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # create_graph=True
            followed = [x for x in ctx.saved_tensors if x is not None and x.requires_grad] if again else []
            with torch.no_grad():
                gradients = backward(ctx, *upstream)
            if not followed:
                return tuple(gradients)
            return tuple(None if x is None else _Refusal.apply(name, x, *followed) for x in gradients)

        return once

    return mark


class _Refusal(torch.autograd.Function):
    """The gradient as it is, of what it depends on; an error on the way back."""

    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, *followed: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        raise RuntimeError(
            f"{ctx.name}: there are no second derivatives (create_graph=True); write the loss in plain torch for them."
        )


def fused(*tensors: Tensor) -> bool:
    """True where an op of a layer has a kernel for all of these: float32 on the CPU, and nothing that has to see into
    the op, for which the eager definition is there."""
    for x in tensors:
        if x.dtype is not torch.float32 or not x.is_cpu or not (type(x) is Tensor or type(x) is Parameter):
            return False
    return not (use_reference() or _looked_at() or _transformed())


def code(tensor: Tensor) -> int:
    """The kernels' code of a dtype."""
    return DTYPE_CODES[tensor.dtype]


def address(tensor: Tensor | None) -> int:
    """Address of the first element, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def upstream(*gradients: Tensor | None) -> list[Tensor | None]:
    """Gradients of outputs as the kernels take them: contiguous, or None where an output was not used."""
    return [None if x is None else x.contiguous() for x in gradients]
