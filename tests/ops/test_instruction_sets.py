"""The CPU kernels in every instruction set that this machine has: chosen by name, and one result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gipo_mc.ops import native

#: Every op, at sizes that are no multiple of sixteen. The instruction set is chosen at the first call of a process, so
#: that each gets a fork of one that has called nothing yet.
PROGRAM = """
import os, sys, torch
from gipo_mc import ops
from gipo_mc.ops import native
from tests.ops.cases import cache_case, objective_case, shaping_case, token_case
for name in sys.argv[2:]:
    pid = os.fork()
    if pid == 0:
        os.environ["GIPO_MC_CPU"] = name
        break
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        sys.exit(f"{name}: exit code {status}")
else:
    sys.exit()
torch.manual_seed(5)
results = []
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    logits = (4 * torch.randn(7, 2051)).to(dtype).requires_grad_()
    out = ops.token_statistics(logits, torch.randint(0, 2051, (7,)), temperature=0.7)
    (out.logp_N.sum() - 0.3 * out.entropy_N.sum()).backward()
    case = objective_case(5, 601, 3, dtype=dtype)
    case["logp_BT"].requires_grad_()
    objective = ops.group_objective(**case, clip=0.2, kl_estimator="k3", signal_form="ratio")
    (objective.surrogate_B.sum() + objective.weighted_M.sum() + objective.weighted_kl).backward()
    shaped = ops.shape_and_gae(**shaping_case(5, 530, dtype=dtype), gamma=0.99, lam=0.95, kl_estimator="k3")
    drawn = []
    for choice in ({}, {"greedy": True}, {"top_k": 60}, {"top_p": 0.8}, {"top_k": 700, "top_p": 0.9}):
        drawn += ops.sample(logits, torch.rand(7).double(), vocab_size=2051, temperature=1.2, **choice)
    results += drawn
    for width in (12, 24, 64):
        tokens, cache = token_case(dtype, 2, 3, width), cache_case((300, 5), 2, width, dtype)
        query = ops.rotate_and_append(**tokens)
        results += [query, tokens["key_pool"], tokens["value_pool"]]
        slots, lengths = torch.tensor([0, 1, 0, 0, 1, 1]), torch.tensor([300, 5, 17, 1, 0, 4])
        results.append(ops.paged_attention(query, *cache, slots, lengths, 0.3))
    if dtype == torch.float32:
        for width in (12, 16, 40):
            qkv, angle = torch.randn(21, 3, 2 * 4 * width, requires_grad=True), torch.rand(21, width // 2)
            seen = ops.causal_attention(qkv, angle.cos(), angle.sin(), 2, 0.3)
            leaves = [torch.randn(*shape, requires_grad=True) for shape in ((70, width), (70, width), (width,))]
            total, normed = ops.norm_of_sum(*leaves, 1e-5)
            gated = ops.gated_silu(normed)
            ups = [torch.randn_like(x) for x in (seen, total, gated)]
            results += [seen, normed, gated, *torch.autograd.grad([seen, total, gated], [qkv, *leaves], ups)]
    results += [out.logp_N, out.entropy_N, logits.grad, *objective, case["logp_BT"].grad, *shaped]
assert native.module().build_info()["cpu"] == name
torch.save([x.detach() for x in results], f"{sys.argv[1]}/{name}.pt")
"""


def results(names: list[str], folder: Path) -> dict[str, list[torch.Tensor]]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", PROGRAM, str(folder), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: torch.load(folder / f"{name}.pt") for name in names}


def available() -> list[str]:
    """The names that an unknown one is answered with."""
    done = subprocess.run(
        [sys.executable, "-c", "from gipo_mc import _C; _C.build_info()"],
        env=os.environ | {"GIPO_MC_CPU": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "GIPO_MC_CPU=mmx: this build on this machine has " in done.stderr
    return done.stderr.partition("machine has ")[2].partition(";")[0].split(", ")


def test_all_instruction_sets_agree(tmp_path: Path) -> None:
    names = available()
    assert names[-1] == "plain" and native.module().build_info()["cpu"] in names
    found = results(names, tmp_path)
    if len(names) == 1:
        pytest.skip("this machine has one instruction set")
    for name in names[:-1]:
        for got, plain in zip(found[name], found["plain"], strict=True):
            ulp = torch.finfo(got.dtype).eps if got.is_floating_point() else 0
            torch.testing.assert_close(got, plain, rtol=max(1e-5, ulp), atol=1e-6)
        for got, best in zip(found[name], found[names[0]], strict=True):
            assert torch.equal(got, best), f"{name} and {names[0]} fuse the same products: they must give the same bits"
