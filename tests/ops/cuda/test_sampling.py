"""Sampling on a real device, against the CPU kernel and the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.ops import reference, sample
from tests.ops.cases import DTYPES
from tests.ops.cuda.cases import DEVICE, same_bits
from tests.ops.test_sampling import CHOICES, near, random_logits, special_rows, uniforms

pytestmark = pytest.mark.gpu


def compare(logits: Tensor, uniform: Tensor, **options: Any) -> list[Tensor]:
    """CUDA against float64: the same tokens, but where a uniform number lies on a boundary."""
    drawn = sample(logits.to(DEVICE), uniform.to(DEVICE), **options)
    token, logp = (x.cpu() for x in drawn)
    wanted, _ = reference.sample(logits, uniform, **options)
    assert torch.equal(token < 0, wanted < 0) and torch.equal(logp.isnan(), token < 0)
    for row in (token != wanted).nonzero().flatten().tolist():
        assert near(logits[row], float(uniform[row]), int(token[row]), **options), f"{token[row]}, not {wanted[row]}"
    scaled = logits[token >= 0, : options["vocab_size"]].double() / options.get("temperature", 1.0)
    exact = scaled.gather(1, token[token >= 0, None]).squeeze(1) - scaled.logsumexp(1)
    torch.testing.assert_close(logp[token >= 0], exact, rtol=1e-5, atol=2e-6)
    return list(drawn)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_rows(dtype: torch.dtype, choice: str) -> None:
    for vocab, rows in ((1, 16), (7, 64), (101, 200), (8192, 64), (8193, 9), (32000, 16), (128256, 4)):
        logits = random_logits(rows, vocab, seed=vocab).to(dtype)
        options = {"vocab_size": max(1, vocab - 2), **CHOICES[choice](max(1, vocab - 2))}
        first = compare(logits, uniforms(rows), **options)
        again = sample(logits.to(DEVICE), uniforms(rows).to(DEVICE), **options)
        assert same_bits(list(again), first)
        on_cpu = sample(logits, uniforms(rows), **options)
        assert (on_cpu[0] != first[0].cpu()).sum() <= 1, "rounding decides for the other token once in a million rows"


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_rows(dtype: torch.dtype, choice: str) -> None:
    for vocab in (3, 101, 20000):
        logits = torch.stack(list(special_rows(vocab).values())).to(dtype)
        for uniform in (0.0, 1e-5, 0.37, 0.9, 1 - 2**-53):
            numbers = torch.full((len(logits),), uniform, dtype=torch.float64)
            compare(logits, numbers, vocab_size=vocab, **CHOICES[choice](vocab))


@pytest.mark.parametrize("choice", CHOICES)
def test_neighbours_and_misaligned_rows_change_no_bit(choice: str) -> None:
    """Rows of an odd stride among NaN, and each row alone."""
    rows, vocab, stride = 33, 12_345, 12_361
    storage = torch.full((5 + rows * stride,), torch.nan, device=DEVICE, dtype=torch.bfloat16)
    logits = storage[5:].as_strided((rows, vocab), (stride, 1))
    logits.copy_(random_logits(rows, vocab))
    uniform, options = uniforms(rows).to(DEVICE), {"vocab_size": vocab, **CHOICES[choice](vocab)}
    together = sample(logits, uniform, **options)
    for row in (0, 7, rows - 1):
        alone = sample(logits[row : row + 1], uniform[row : row + 1], **options)
        assert same_bits(list(alone), [x[row : row + 1] for x in together])


@pytest.mark.parametrize("choice", CHOICES)
def test_cuda_graphs_replay_on_new_inputs(choice: str) -> None:
    logits, uniform = random_logits(64, 32_000).to(DEVICE, torch.bfloat16), uniforms(64).to(DEVICE)
    options = {"vocab_size": 32_000, **CHOICES[choice](32_000)}
    sample(logits, uniform, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample(logits, uniform, **options)
    for seed in (1, 2, 1):
        logits.copy_(random_logits(64, 32_000, seed=seed))
        uniform.copy_(uniforms(64, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(list(captured), list(sample(logits, uniform, **options)))


def test_float64_and_mixed_devices_are_refused() -> None:
    with pytest.raises(TypeError, match="float64 on CUDA"):
        sample(torch.zeros(2, 3, device=DEVICE).double(), torch.zeros(2, device=DEVICE).double(), vocab_size=3)
    with pytest.raises(ValueError, match="uniform_B is on cpu"):
        sample(torch.zeros(2, 3, device=DEVICE), torch.zeros(2).double(), vocab_size=3)
