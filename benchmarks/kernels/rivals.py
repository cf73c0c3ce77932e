"""What op A (log-prob and entropy of tokens from their logits) is compared with.

Each factory returns a Rival, or a NotRun with the reason why it cannot run here. Inputs: logits [N, V] (not a leaf,
requires gradient) and targets [N]. Outputs: logp [N] and, where it is given, entropy [N].
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.measure import NotRun, Rival, Tensors
from gipo_mc.ops import reference, token_statistics


def token_rivals(dtype: torch.dtype, device: torch.device) -> list[Rival | NotRun]:
    """Every implementation of op A, ours first."""
    rivals = [ours(inplace=True), ours(inplace=False), eager_token(upcast=True)]
    if dtype != torch.float32:
        rivals.append(eager_token(upcast=False))
    rivals.append(Rival("reference", _reference, "gipo_mc.ops.reference, what the kernels are held to"))
    return [*rivals, compiled(eager_token(upcast=True)), *megatron(device), *liger(device)]


def ours(inplace: bool) -> Rival:
    def forward(given: Tensors) -> Tensors:
        logp, entropy = token_statistics(given["logits"], given["targets"], inplace_backward=inplace)
        return {"logp": logp, "entropy": entropy}

    note = "the gradient written over the logits, as in training" if inplace else "the gradient in memory of its own"
    return Rival("gipo_mc, in place" if inplace else "gipo_mc", forward, note, ours=True)


def eager_token(upcast: bool) -> Rival:
    """What is written without a kernel: log_softmax, gather, and the entropy from the same log-probs."""

    def forward(given: Tensors) -> Tensors:
        logits = given["logits"].float() if upcast else given["logits"]
        logp = F.log_softmax(logits, dim=-1)
        chosen = logp.gather(-1, given["targets"][:, None]).squeeze(-1)
        return {"logp": chosen, "entropy": -(logp.exp() * logp).sum(-1)}

    note = "log_softmax in float32, gather, entropy from it" if upcast else "the same, in the type of the logits"
    return Rival("eager torch" if upcast else "eager torch, no upcast", forward, note)


def _reference(given: Tensors) -> Tensors:
    logp, entropy = reference.token_statistics(given["logits"], given["targets"])
    return {"logp": logp, "entropy": entropy}


def compiled(rival: Rival) -> Rival:
    """The same function under torch.compile, anew for every case."""
    torch._dynamo.reset()
    return Rival(f"torch.compile of {rival.name}", torch.compile(rival.forward, dynamic=False), rival.note)


def module(name: str) -> Any:
    """The module, or the reason why there is none."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken library fails in ways of its own; the reason goes into the table
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:160]}"


def megatron(device: torch.device) -> list[Rival | NotRun]:
    """Megatron-core's two cross entropies on a tensor-parallel group of one rank."""
    names = ("Megatron, fused", "Megatron, unfused")
    fused = module("megatron.core.fusions.fused_cross_entropy")
    plain = module("megatron.core.tensor_parallel")
    runtime = module("gipo_mc.parallel.runtime")
    for found in (fused, plain, runtime):
        if isinstance(found, str):
            return [NotRun(name, found) for name in names]
    from megatron.core import parallel_state

    from gipo_mc.config import ParallelConfig

    runtime.initialize(ParallelConfig(), device.type)
    group = parallel_state.get_tensor_model_parallel_group()
    return [
        Rival(
            names[0],
            lambda given: {"logp": -fused.fused_vocab_parallel_cross_entropy(given["logits"], given["targets"], group)},
            "no entropy; its gradient is bfloat16 whatever the logits are",
        ),
        Rival(
            names[1],
            lambda given: {"logp": -plain.vocab_parallel_cross_entropy(given["logits"], given["targets"])},
            "no entropy",
        ),
    ]


def liger(device: torch.device) -> list[Rival | NotRun]:
    """Liger's cross entropy, which computes the gradient in its forward pass and writes it over the logits."""
    mark = " (Triton interpreter)" if interpreting() else ""
    names = ("Liger, a gradient a token" + mark, "Liger, sum" + mark)
    found = triton_module("liger_kernel.ops.cross_entropy", device)
    if isinstance(found, str):
        return [NotRun(name, found) for name in names]

    def loss(given: Tensors, reduction: str) -> Tensor:
        function = found.LigerCrossEntropyFunction
        return function.apply(given["logits"], given["targets"], None, -100, 0.0, 0.0, reduction)[0]

    return [
        Rival(
            names[0],
            lambda given: {"logp": -loss(given, "none")},
            "no entropy; log-probs in the logits' type; waits for the device",
        ),
        Rival(
            names[1],
            lambda given: {"logp_sum": -loss(given, "sum")},
            "no entropy; every token weighs 1: no policy gradient; waits for the device",
        ),
    ]


def triton_module(name: str, device: torch.device) -> Any:
    """A module of Triton kernels, or the reason why it cannot run on `device`."""
    found = module(name)
    if isinstance(found, str) or device.type == "cuda" or interpreting():
        return found
    return "its Triton kernels need a GPU"


def interpreting() -> bool:
    """Triton's interpreter runs kernels on the CPU, thousands of times slower: for trying this file out only."""
    knobs = module("triton.knobs")
    return not isinstance(knobs, str) and bool(knobs.runtime.interpret)
