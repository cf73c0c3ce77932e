"""Token statistics on a real device, against the CPU kernel and the float64 reference, beyond 32-bit offsets too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gipo_mc.ops import reference, token_statistics
from gipo_mc.ops.token_statistics import token_gradient, token_gradient_, token_merge, token_partials, token_results
from tests.ops.cases import DTYPES, HALF, close, within_ulp
from tests.ops.cuda.cases import DEVICE, tokens

pytestmark = pytest.mark.gpu


def agree(cuda: list[Tensor], cpu: list[Tensor], exact: list[Tensor]) -> None:
    """CUDA against the CPU kernels, and against float64."""
    for got, want, true in zip(cuda, cpu, exact, strict=True):
        assert got.device.type == DEVICE and got.dtype == want.dtype
        if got.dtype in HALF:
            within_ulp(got.cpu(), want.double(), slack=1e-6)
            within_ulp(got.cpu(), true, slack=1e-6)
        else:
            torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=2e-6, equal_nan=True)
            close(got.cpu(), true)


def compare_tokens(logits: Tensor, targets: Tensor, **options: object) -> list[Tensor]:
    cuda = tokens(logits.to(DEVICE), targets.to(DEVICE), **options)
    exact = tokens(logits.double(), targets, reference.token_statistics, **options)
    agree(cuda, tokens(logits, targets, **options), exact)
    return cuda


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 255, 257, 1023, 1025, 4099, 8192, 12289, 32000, 128256])
def test_token_statistics(columns: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(7, columns) * 4).to(dtype)
    vocabulary = max(1, columns - columns // 5)
    targets = torch.randint(0, vocabulary, (7,))
    targets[2] = -100
    gradient = compare_tokens(logits, targets, vocab_size=vocabulary, temperature=0.7)[2]
    assert (gradient[:, vocabulary:] == 0).all() and (gradient[2] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 3, 4, 7])
def test_token_statistics_of_misaligned_rows(offset: int, dtype: torch.dtype) -> None:
    """Rows that start anywhere, gradients in place and elsewhere; nothing outside the rows is written."""
    rows, columns, stride, width = 5, 8400, 8413, 8405
    storage = torch.randn(offset + rows * stride).to(DEVICE, dtype)
    targets = torch.tensor([0, columns - 1, -100, 4000, 8191], device=DEVICE)
    view = storage[offset:].as_strided((rows, width), (stride, 1))
    exact = reference.token_statistics(view.cpu().double(), targets.cpu(), vocab_size=columns)
    for got, want in zip(token_statistics(view, targets, vocab_size=columns), exact, strict=True):
        close(got.cpu(), want)
    ones = torch.ones(rows, device=DEVICE)
    _, *kept = token_results(view, targets, 0, columns, 1.0)
    arguments = (targets, *kept, ones, ones, 0, columns, columns, 1.0)
    expected = token_gradient(view, *arguments)
    before = storage.clone()
    token_gradient_(view, *arguments)
    assert torch.equal(view, expected)
    inside = torch.zeros(len(storage), dtype=torch.bool, device=DEVICE)
    inside[offset:].as_strided((rows, width), (stride, 1)).fill_(True)
    assert torch.equal(storage[~inside], before[~inside])


def test_logits_of_any_size_and_sign() -> None:
    for shift in (-1e4, 1e4, -3e38):
        compare_tokens(torch.randn(4, 67) * 4 + shift, torch.randint(0, 67, (4,)))
    far = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [3e38, -3e38, 0.0]])
    compare_tokens(far, torch.tensor([0, 1, 0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_are_not_finite(dtype: torch.dtype) -> None:
    logits = (torch.randn(6, 9000) * 3).to(dtype)
    logits[0, 5:8000] = -torch.inf
    logits[1, 20], logits[3, 21] = torch.nan, torch.nan
    logits[4] = torch.nan
    targets = torch.tensor([0, 1, 2, -100, -100, 8999])
    token = token_statistics(logits.to(DEVICE), targets.to(DEVICE))
    for field in token:
        assert field.isnan().tolist() == [False, True, False, False, False, False]
    finite = torch.tensor([0, 2, 3, 4, 5])
    compare_tokens(logits[finite], targets[finite])
    outside = token_statistics(logits[:1].to(DEVICE), torch.tensor([7], device=DEVICE))
    assert outside.logp_N.item() == -torch.inf and outside.entropy_N.isfinite().all()
    nothing = token_statistics(torch.full((1, 9000), -torch.inf, device=DEVICE, dtype=dtype), targets[:1].to(DEVICE))
    assert nothing.entropy_N.isnan().all()


def test_targets_outside_the_vocabulary_touch_no_other_memory() -> None:
    logits, targets = torch.randn(3, 24, device=DEVICE), torch.tensor([3, 0, 5], device=DEVICE)
    for wrong in (20, 23, 24, 10**12, -1, -(10**12)):
        targets[1] = wrong
        partials = token_partials(logits, targets, 0, 20, 1.0)
        logp, entropy, statistics = token_merge(partials[None], targets, 1.0)
        assert logp[1] == -torch.inf and entropy.isfinite().all() and logp[::2].isfinite().all()
        whole = token_results(logits, targets, 0, 20, 1.0)
        assert all(torch.equal(x, y) for x, y in zip(whole, (logp, entropy, statistics), strict=True))
        ones = torch.ones(3, device=DEVICE)
        gradient = token_gradient(logits, targets, entropy, statistics, ones, ones, 0, 20, 20, 1.0)
        exact = logits.double().cpu().requires_grad_()
        reference.token_statistics(exact, targets.cpu().clamp(0, 19), vocab_size=20).entropy_N.sum().backward()
        assert exact.grad is not None
        close(gradient[1].cpu(), exact.grad[1], "only the entropy has a gradient there")


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output_expanded_and_with_zeros(output: int) -> None:
    logits, targets = torch.randn(4, 5000), torch.randint(0, 5000, (4,))
    for upstream in (torch.ones(1).expand(4), torch.tensor([0.5, -2.0, 0.0, 3.0])):
        gradients = []
        for op, leaf in (
            (token_statistics, logits.to(DEVICE, copy=True).requires_grad_()),
            (reference.token_statistics, logits.double().requires_grad_()),
        ):
            op(leaf, targets.to(leaf.device))[output].backward(upstream.to(leaf.device, leaf.dtype))
            assert leaf.grad is not None
            gradients.append(leaf.grad.cpu())
        close(*gradients)
        assert (gradients[0][upstream == 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_inplace_backward_writes_the_same_gradient_over_the_logits(dtype: torch.dtype) -> None:
    source, targets = (torch.randn(7, 9001) * 3).to(DEVICE, dtype), torch.randint(0, 9001, (7,)).to(DEVICE)
    gradients = []
    for inplace in (False, True):
        leaf = source.clone().requires_grad_()
        logits = leaf * 1.0
        token = token_statistics(logits, targets, inplace_backward=inplace)
        seen: list[Tensor] = []
        logits.register_hook(seen.append)
        (token.logp_N * 2 - token.entropy_N).sum().backward()
        assert (seen[0].data_ptr() == logits.data_ptr()) is inplace
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_few_rows() -> None:
    for rows in (0, 1):
        logits = compare_tokens(torch.randn(rows, 12), torch.randint(0, 12, (rows,)))[2]
        assert logits.shape == (rows, 12)
    ignored = compare_tokens(torch.randn(3, 9000), torch.full((3,), -100))
    assert all((x == 0).all() for x in ignored)
    compare_tokens(torch.randn(1, 6).expand(5, 6), torch.randint(0, 6, (5,)))


def test_offsets_beyond_32_bits() -> None:
    rows, columns = 16_800, 128_256  # 2^31 elements end in row 16,744
    if torch.cuda.mem_get_info()[0] < 6e9:
        pytest.skip("needs 6 GB of free device memory")
    logits = torch.empty(rows, columns, device=DEVICE, dtype=torch.bfloat16).normal_()
    targets = torch.randint(0, columns, (rows,), device=DEVICE)
    whole = token_results(logits, targets, 0, columns, 1.0)
    chosen = torch.tensor([0, 1, 16_743, 16_744, 16_745, rows - 1], device=DEVICE)
    few, few_targets = logits[chosen], targets[chosen]
    alone = token_results(few, few_targets, 0, columns, 1.0)
    assert all(torch.equal(x[..., chosen], y) for x, y in zip(whole, alone, strict=True))
    ones, numbers = torch.ones(rows, device=DEVICE), (0, columns, columns, 1.0)
    expected = token_gradient(few, few_targets, *alone[1:], ones[chosen], ones[chosen], *numbers)
    token_gradient_(logits, targets, *whole[1:], ones, ones, *numbers)
    assert torch.equal(logits[chosen], expected)
