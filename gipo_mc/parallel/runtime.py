"""Start and stop the process groups: NCCL on CUDA, gloo on CPU, one process without torchrun."""

from __future__ import annotations

import gipo_mc.parallel.megatron  # noqa: F401  # before anything else imports Megatron-core

# isort: split
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from gipo_mc.config import ParallelConfig
from gipo_mc.errors import ConfigError, PeerError
from gipo_mc.parallel import limits, news
from gipo_mc.parallel.launcher import several_hosts
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.megatron import cpu_adapter, versions
from gipo_mc.parallel.megatron.second_layout import Groups
from gipo_mc.parallel.messages import shared_memory as memory
from gipo_mc.parallel.news import first_error, first_loss
from gipo_mc.parallel.nodes import greeting, network

# Megatron wants a seed for its own random tracker. Nothing draws from it (dropout is 0, weights come from named
# streams, sampling from counter-based ones), so it is a constant and not an option.
_TRACKER_SEED = 1
#: A model with fewer on a rank is small (`suit_threads`).
_FEW_PARAMETERS = 1_000_000
#: Threads that torch would have, as long as models choose; None: they do not, or no longer.
_usual_threads: int | None = None
#: Of layouts beside the first one, by (tensor, pipeline); kept, for a command that runs several trainings.
_groups_beside: dict[tuple[int, int], Groups] = {}
#: Store, rank and ranks of the first meeting of this process, and how often ranks have joined since.
_met: tuple[dist.Store, int, int] | None = None
_joins = count()


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """ "auto" is CUDA where every local rank has a GPU of its own. Raises ConfigError if CUDA is asked for in vain."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        raise ConfigError(
            f"device=cuda, but torch {torch.__version__} here is a build for the CPU, which uses no GPU: `pip "
            f"uninstall torch`, then `pip install torch=={torch.__version__.partition('+')[0]}` brings one for CUDA "
            "(into a new environment: `make venv TORCH_INDEX=`). Or use device=cpu."
        )
    if device == "cuda" and gpus < local_ranks:
        raise ConfigError(
            f"device=cuda, but this machine has {gpus} usable GPUs for {local_ranks} local ranks: start at most {gpus} "
            "ranks here (torchrun --nproc-per-node), or use device=cpu. gipo-mc doctor shows what torch sees."
        )
    if device == "auto":
        return "cuda" if gpus >= local_ranks > 0 else "cpu"
    return device


def resolve_dtype(dtype: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on CUDA, float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def let_models_choose_threads() -> None:
    """Have `suit_threads` choose how many threads torch has on the CPU, unless OMP_NUM_THREADS does. For a process that
    is a command's own."""
    global _usual_threads
    _usual_threads = None if "OMP_NUM_THREADS" in os.environ else torch.get_num_threads()


def suit_threads(parameters: int) -> None:
    """One thread while all models on this rank are small, as many as torch has by itself from the first larger one on.

    Threads of a small model gain nothing on an idle machine, and where others want the cores each of its many short
    ops waits for a thread that does not run: iterations took ten times as long.
    """
    global _usual_threads
    if _usual_threads is None:
        return
    if parameters > _FEW_PARAMETERS:
        torch.set_num_threads(_usual_threads)
        _usual_threads = None
    else:
        torch.set_num_threads(1)


def initialize(
    parallel: ParallelConfig,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    same: Mapping[str, object] | None = None,
    *,
    frozen: bool = False,
) -> Layout:
    """Join the process group, build Megatron's groups, and say where this rank stands.

    Reads RANK, WORLD_SIZE, LOCAL_RANK as torchrun sets them; without them this is a job of one rank that opens no
    connection. Collectives that take longer than `parallel.timeout_minutes` end the job. The layout must have been
    checked before (`gipo_mc.config.check_layout`).

    same: what has to be the same on all hosts, where there are several, by name; versions and code are in any case.
    frozen: there are frozen models, whose layout may be one beside this (`Layout.of_frozen`).
    Raises the errors of `nodes.greeting.greet`, and PeerError where ranks do not reach each other.
    """
    kind = resolve_device(device)
    versions.keep_notices_to_developers()
    timeout = timedelta(minutes=parallel.timeout_minutes)
    limits.set_limit(timeout.total_seconds())
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
        # torch prefers cuDNN's attention on Hopper, which plans an execution anew for every length it meets.
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        place = torch.device("cpu")
        cpu_adapter.apply()
    if not dist.is_initialized():
        _join(kind, parallel, {"device": kind, **(same or {})})
    layout = _own_layout(parallel, place)
    return _with_frozen(layout, parallel) if frozen else layout


def _own_layout(parallel: ParallelConfig, place: torch.device) -> Layout:
    sizes = (parallel.tensor, parallel.pipeline)
    if parallel_state.model_parallel_is_initialized():
        # A command may run several trainings one after the other on the same ranks.
        now = current_layout(parallel, place)
        if (now.tensor, now.pipeline) == sizes:
            return now
        parallel_state.destroy_model_parallel()
    _make_groups(*sizes, parallel.timeout_minutes)
    tensor_parallel.model_parallel_cuda_manual_seed(_TRACKER_SEED)
    return current_layout(parallel, place)


def _with_frozen(layout: Layout, parallel: ParallelConfig) -> Layout:
    """The layout, with one beside it where frozen models have another (parallel.frozen_tensor, .frozen_pipeline)."""
    sizes = parallel.frozen_sizes
    if sizes == (layout.tensor, layout.pipeline):
        return layout
    groups = _groups_beside.setdefault(sizes, Groups())
    with groups.active():
        if not parallel_state.model_parallel_is_initialized():
            _make_groups(*sizes, parallel.timeout_minutes)
        own = current_layout(parallel, layout.device)
    own = replace(own, sequence=parallel.sequence and sizes[0] > 1, virtual=1, groups=groups)
    return replace(layout, beside=own)


def _make_groups(tensor: int, pipeline: int, timeout_minutes: float) -> None:
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        distributed_timeout_minutes=timeout_minutes,  # becomes a timedelta, which takes fractions too
    )


def _join(kind: Literal["cpu", "cuda"], parallel: ParallelConfig, same: Mapping[str, object]) -> None:
    timeout = timedelta(minutes=parallel.timeout_minutes)
    # Both backends on CUDA: metrics and checkpoints also move CPU tensors.
    in_memory = parallel.shared_memory and not several_hosts()
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else cpu_backend(in_memory)
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    store, rank, world = _meet(timeout)
    if not several_hosts():
        dist.init_process_group(
            backend, store=dist.PrefixStore("default_pg", store), rank=rank, world_size=world, timeout=timeout
        )
        return
    greeting.greet(store, rank, world, same)
    news.of_several_hosts(parallel.silence_seconds, timeout.total_seconds())
    try:
        dist.init_process_group(
            backend, store=dist.PrefixStore("default_pg", store), rank=rank, world_size=world, timeout=timeout
        )
    except RuntimeError as error:
        raise PeerError(
            f"The ranks have met and do not reach each other: {greeting.host_at(str(error))}{network.VARIABLE} (gloo) "
            "and NCCL_SOCKET_IFNAME (NCCL) name the interface of each host that the others are reached by; no "
            f"firewall may stand between them. It said: {error}"
        ) from error


def _meet(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """(a store that nobody has written to, this rank, all ranks). Ranks that join again, after `shutdown`, keep the
    store of their first meeting, which has what they told each other then: each time they use a part of its own."""
    global _met
    if _met is None:
        if several_hosts():
            _met = greeting.meet(timeout)
        else:
            _met = next(dist.rendezvous("env://", timeout=timeout))
            _met[0].set_timeout(timeout)
    store, rank, world = _met
    again = next(_joins)
    return (dist.PrefixStore(f"again{again}", store) if again else store), rank, world


def cpu_backend(shared_memory: bool) -> str:
    """The backend of torch.distributed for a job on the CPU."""
    if not shared_memory:
        return "gloo"
    memory.register()
    return memory.BACKEND


def current_layout(parallel: ParallelConfig, device: torch.device) -> Layout:
    """The layout of the groups that Megatron holds now. Chunks of layers have no groups of their own."""
    return Layout(
        world_size=dist.get_world_size(),
        rank=dist.get_rank(),
        tensor=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline=parallel_state.get_pipeline_model_parallel_world_size(),
        data=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        sequence=parallel.sequence and parallel.tensor > 1,
        device=device,
        virtual=parallel.virtual_pipeline,
    )


def lost_peer(
    error: RuntimeError, stands: str = "The same command continues from the last checkpoint, if there is one."
) -> PeerError | None:
    """The PeerError behind a collective's error, or None where it is about something else. It names the rank that was
    lost first, as far as the ranks can tell each other. stands: what the same command will do, a sentence.

    gloo reports a dead or silent peer as a plain RuntimeError, NCCL as a DistBackendError.
    """
    # The last is what gloo says to those who ask again after a time-out; it names no file of gloo's.
    signs = ("Connection closed by peer", "Connection reset", "Timed out", "gloo", "timeout caused pair closure")
    if not isinstance(error, dist.DistBackendError) and not any(sign in str(error) for sign in signs):
        return None
    first = first_error()
    said = str(error).split(" This is typically")[0].rstrip(". ")
    cause = (
        f"Rank {first.rank} failed first: {first.message}{first.place}"
        if first
        else first_loss(f"{greeting.host_at(str(error))}The collective said: {said}.")
    )
    return PeerError(f"A rank was lost, or did not answer within parallel.timeout_minutes. {cause} {stands}")


def timed_out(error: BaseException) -> bool:
    """Did this collective's error come from waiting too long?"""
    return "imed out" in str(error) or "imeout" in str(error)


def shutdown(*, keep_ranks: bool = False) -> None:
    """Leave all groups. Idempotent. keep_ranks: only Megatron's, not the one of all ranks, which somebody else made."""
    parallel_state.destroy_model_parallel()
    _groups_beside.clear()
    if dist.is_initialized() and not keep_ranks:
        dist.destroy_process_group()
