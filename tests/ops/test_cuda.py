"""The CUDA kernels on a real device against the CPU kernels: values, gradients, repeats, streams, wrong input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gipo_mc.ops import group_objective, native, shape_and_gae, token_statistics
from tests.ops.cases import DTYPES, ESTIMATORS, HALF, SCORES, objective_case, shaping_case, within_ulp

pytestmark = pytest.mark.gpu

OBJECTIVE = {"clip": 0.2, "kl_estimator": "k3", "score": "ratio"}


@pytest.fixture(autouse=True)
def _built_with_cuda() -> None:
    if not native.module().build_info()["cuda"]:
        pytest.fail(
            "There is a CUDA device, but gipo_mc._C was built without CUDA kernels: put nvcc on PATH and rebuild."
        )


def agree(cuda: list[Tensor], cpu: list[Tensor]) -> None:
    for got, want in zip(cuda, cpu, strict=True):
        assert got.is_cuda and got.dtype == want.dtype
        if got.dtype in HALF:
            within_ulp(got.cpu(), want.double(), slack=1e-6)
        else:
            torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=2e-6, equal_nan=True)


def tokens(logits: Tensor, targets: Tensor, device: str, **options: object) -> list[Tensor]:
    leaf = logits.detach().to(device).requires_grad_()
    token = token_statistics(leaf, targets.to(device), **options)  # type: ignore[arg-type]
    upstream = torch.linspace(-1.5, 2.0, 2 * len(targets)).reshape(2, -1).to(token.logp_N)
    torch.autograd.backward(list(token), list(upstream))
    return [*(x.detach() for x in token), leaf.grad]  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 255, 257, 1023, 1025, 4099, 32000, 128256])
def test_token_statistics(columns: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(7, columns) * 4).to(dtype)
    targets = torch.randint(0, columns, (7,))
    targets[2] = -100
    options = {"vocab_size": max(1, columns - columns // 5), "temperature": 0.7}
    targets = targets.clamp(max=options["vocab_size"] - 1)
    first = tokens(logits, targets, "cuda", **options)
    agree(first, tokens(logits, targets, "cpu", **options))
    assert all(torch.equal(a, b) for a, b in zip(first, tokens(logits, targets, "cuda", **options), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 3, 5])
def test_token_statistics_of_misaligned_rows(offset: int, dtype: torch.dtype) -> None:
    storage = torch.randn(offset + 5 * 1040).to(dtype)
    targets = torch.randint(0, 1037, (5,))
    results = []
    for device in ("cuda", "cpu"):
        view = storage.to(device)[offset:].as_strided((5, 1037), (1040, 1))
        results.append(list(token_statistics(view, targets.to(device))))
    agree(*results)


def test_token_statistics_inplace_and_extreme_logits() -> None:
    logits = torch.randn(4, 100) * 3
    logits[0] += 1e4
    logits[1] -= 1e4
    logits[2, 5:50] = -torch.inf
    targets = torch.tensor([0, 99, 3, -100])
    agree(tokens(logits, targets, "cuda"), tokens(logits, targets, "cpu"))
    source = logits.cuda().requires_grad_()
    token_statistics(source * 1.0, targets.cuda(), inplace_backward=True).logp_N.sum().backward()
    other = logits.cuda().requires_grad_()
    token_statistics(other * 1.0, targets.cuda()).logp_N.sum().backward()
    assert torch.equal(source.grad, other.grad)


def test_token_statistics_beyond_32_bit_offsets() -> None:
    rows, columns = 16_800, 128_256
    if torch.cuda.mem_get_info()[0] < 3 * rows * columns * 2:
        pytest.skip("needs 13 GB of free device memory")
    source = torch.zeros(1, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    logits = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) + source
    targets = torch.randint(0, columns, (rows,), device="cuda")
    last = logits.detach()[-1:].clone()
    token = token_statistics(logits, targets, inplace_backward=True)
    alone = token_statistics(last, targets[-1:])
    assert torch.equal(token.logp_N[-1:], alone.logp_N) and torch.equal(token.entropy_N[-1:], alone.entropy_N)


def objective(case: dict[str, Tensor], device: str, options: dict) -> list[Tensor]:
    case = {name: x.to(device) for name, x in case.items()}
    logp, probs = case["logp_BT"].clone().requires_grad_(), case["group_probs_BM"].clone().requires_grad_()
    out = group_objective(**{**case, "logp_BT": logp, "group_probs_BM": probs}, **options)
    loss = sum(
        (x * torch.linspace(-1, 2, x.numel(), device=device).reshape(x.shape)).sum() for x in out if x.requires_grad
    )
    loss.backward()
    return [*(x.detach() for x in out), probs.grad, logp.grad]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kl_estimator", ESTIMATORS)
def test_group_objective(kl_estimator: str, score: str, dtype: torch.dtype) -> None:
    options = {"clip": 0.2, "kl_estimator": kl_estimator, "score": score}
    for batch, time, groups in ((6, 300, 3), (300, 5, 2), (0, 4, 2), (2, 0, 1)):
        case = objective_case(batch, time, groups, dtype)
        first = objective(case, "cuda", options)
        agree(first, objective(case, "cpu", options))
        assert all(torch.equal(a, b) for a, b in zip(first, objective(case, "cuda", options), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kl_estimator", ESTIMATORS)
def test_shape_and_gae(kl_estimator: str, dtype: torch.dtype) -> None:
    options = {"gamma": 0.99, "lam": 0.95, "kl_estimator": kl_estimator}
    for batch, time in ((6, 700), (300, 5), (1, 256), (0, 4), (2, 0)):
        case = shaping_case(batch, time, dtype)
        runs = [shape_and_gae(**{k: x.cuda() for k, x in case.items()}, **options) for _ in range(2)]
        agree(list(runs[0]), list(shape_and_gae(**case, **options)))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_kernels_run_on_the_current_stream() -> None:
    """A long queue on a side stream writes the input; on any other stream the op would read it too early."""
    case = {name: x.cuda() for name, x in objective_case(64, 200, 2).items()}
    expected = group_objective(**case, **OBJECTIVE)
    late = torch.zeros_like(case["logp_BT"])
    busy = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = busy @ busy * 1e-4
        late.copy_(case["logp_BT"])
        out = group_objective(**{**case, "logp_BT": late}, **OBJECTIVE)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


def test_float64_and_mixed_devices_are_refused() -> None:
    with pytest.raises(TypeError, match="float64 on CUDA"):
        token_statistics(torch.zeros(2, 3, device="cuda").double(), torch.zeros(2, dtype=torch.int64, device="cuda"))
    with pytest.raises(ValueError, match="on cpu, the other inputs on cuda"):
        token_statistics(torch.zeros(2, 3, device="cuda"), torch.zeros(2, dtype=torch.int64))
