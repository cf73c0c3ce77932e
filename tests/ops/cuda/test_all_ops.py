"""All CUDA kernels in one sequence: repeats, CUDA graphs, streams; and the inputs that they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gipo_mc.ops import group_objective, shape_and_gae, token_statistics
from tests.ops.cases import objective_case, shaping_case
from tests.ops.cuda.cases import DEVICE, OBJECTIVE, same_bits, tokens

pytestmark = pytest.mark.gpu

SHAPING = {"gamma": 0.99, "lam": 0.95, "kl_estimator": "k1"}


def everything(
    inputs: dict[str, Tensor], objective_inputs: dict[str, Tensor], shaping_inputs: dict[str, Tensor]
) -> list[Tensor]:
    """All ops, forward and backward, without a synchronisation."""
    statistics = tokens(inputs["logits"], inputs["targets"], temperature=0.9)
    leaf = objective_inputs["logp_BT"].detach().requires_grad_()
    out = group_objective(**{**objective_inputs, "logp_BT": leaf}, **OBJECTIVE)
    (gradient,) = torch.autograd.grad(out.surrogate_B.sum() + out.weighted_M.square().sum() + out.weighted_kl, leaf)
    return [*statistics, *(x.detach() for x in out), gradient, *shape_and_gae(**shaping_inputs, **SHAPING)]


def all_inputs(seed: int, device: str = DEVICE) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(33, 12_345, generator=generator) * 4
    targets = torch.randint(0, 12_345, (33,), generator=generator)
    cases = [
        {"logits": logits.to(torch.bfloat16), "targets": targets},
        objective_case(64, 333, 5, seed=seed),
        shaping_case(64, 333, seed=seed),
    ]
    return [{name: x.to(device) for name, x in case.items()} for case in cases]


def test_a_hundred_runs_give_the_same_bits() -> None:
    inputs = all_inputs(0)
    first = everything(*inputs)
    for _ in range(100):
        assert same_bits(everything(*inputs), first)


def test_cuda_graphs_replay_the_same_bits_on_new_inputs() -> None:
    static = all_inputs(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            everything(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything(*static)
    for seed in (1, 2, 1):
        fresh = all_inputs(seed)
        for case, new in zip(static, fresh, strict=True):
            for name, x in case.items():
                x.copy_(new[name])
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(captured, everything(*fresh))


def test_kernels_run_on_the_current_stream() -> None:
    """A long queue on a side stream writes the inputs; on any other stream the ops would read them too early."""
    inputs = all_inputs(3)
    expected = everything(*inputs)
    late = [{name: torch.zeros_like(x) for name, x in case.items()} for case in inputs]
    busy = torch.randn(4096, 4096, device=DEVICE)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(40):
            busy = busy @ busy * 1e-4
        for case, new in zip(late, inputs, strict=True):
            for name, x in case.items():
                x.copy_(new[name])
        got = everything(*late)
    stream.synchronize()
    assert same_bits(got, expected)


def test_float64_and_mixed_devices_are_refused() -> None:
    with pytest.raises(TypeError, match="float64 on CUDA"):
        token_statistics(torch.zeros(2, 3, device="cuda").double(), torch.zeros(2, dtype=torch.int64, device="cuda"))
    with pytest.raises(ValueError, match="on cpu, the other inputs on cuda"):
        token_statistics(torch.zeros(2, 3, device="cuda"), torch.zeros(2, dtype=torch.int64))
