"""Group objective, joined token objective, shaping and GAE on a real device, against the CPU kernels and float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gipo_mc.ops import group_objective, reference, shape_and_gae, token_objective
from tests.ops.cases import (
    DTYPES,
    ESTIMATORS,
    HALF,
    SIGNAL_FORMS,
    joined_case,
    objective_case,
    shaping_case,
    widened,
    within_ulp,
)
from tests.ops.cuda.cases import DEVICE, OBJECTIVE, same_bits

pytestmark = pytest.mark.gpu


def objective(case: dict[str, Tensor], options: dict, op: Callable = group_objective) -> list[Tensor]:
    leaves = {name: case[name].detach().clone().requires_grad_() for name in ("logp_BT", "group_probs_BM")}
    out = op(**{**case, **leaves}, **options)
    weights = [torch.linspace(-1, 2, x.numel(), device=x.device, dtype=x.dtype).reshape(x.shape) for x in out]
    used = [(x, weight) for x, weight in zip(out, weights, strict=True) if x.requires_grad]
    gradients = torch.autograd.grad([x for x, _ in used], list(leaves.values()), [weight for _, weight in used])
    padding = torch.arange(case["logp_BT"].shape[1], device=gradients[0].device) >= case["length_B"][:, None]
    assert (gradients[0][padding] == 0).all()
    return [*(x.detach() for x in out), gradients[1], gradients[0]]


def on_device(case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.to(DEVICE) for name, x in case.items()}


def compare_objective(case: dict[str, Tensor], options: dict) -> None:
    cuda, cpu = objective(on_device(case), options), objective(case, options)
    for got, want in zip(cuda, cpu, strict=True):
        assert got.device.type == DEVICE and got.dtype == want.dtype
        if got.dtype in HALF:
            within_ulp(got.cpu(), want.double(), slack=1e-6)
        else:
            torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=2e-5, equal_nan=True)
    exact = objective(widened(case), options, reference.group_objective)
    for got, true in zip(cuda, exact, strict=True):
        if got.dtype in HALF:
            within_ulp(got.cpu(), true, slack=1e-6)
        else:
            torch.testing.assert_close(got.cpu().double(), true, rtol=1e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("signal_form", SIGNAL_FORMS)
@pytest.mark.parametrize("kl_estimator", ESTIMATORS)
def test_group_objective(kl_estimator: str, signal_form: str, dtype: torch.dtype) -> None:
    options = {"clip": 0.2, "kl_estimator": kl_estimator, "signal_form": signal_form}
    for batch, time, groups in ((6, 300, 3), (3, 2057, 9), (5, 1024, 4), (300, 5, 2), (4, 7, 1), (0, 4, 2), (2, 0, 1)):
        compare_objective(objective_case(batch, time, groups, dtype), options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shifts", [(1, 1, 1, 1), (0, 1, 0, 0), (3, 3, 3, 2)])
def test_group_objective_of_misaligned_tokens(shifts: tuple[int, ...], dtype: torch.dtype) -> None:
    """Contiguous inputs that start off a 16-byte boundary, all alike or not."""
    case = objective_case(3, 333, 2, dtype)
    aligned = on_device(case)
    names = ("logp_BT", "behaviour_logp_BT", "reference_logp_BT", "advantage_BT")
    shifted = dict(aligned)
    for name, shift in zip(names, shifts, strict=True):
        storage = torch.full((3 * 333 + shift,), torch.nan, device=DEVICE, dtype=dtype)
        shifted[name] = storage[shift:].view(3, 333)
        shifted[name].copy_(aligned[name])
        assert shifted[name].is_contiguous()
    for got, want in zip(group_objective(**shifted, **OBJECTIVE), group_objective(**case, **OBJECTIVE), strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=2e-5)


def joined(case: dict[str, Tensor], device: str, op: Callable = token_objective, inplace: bool = False) -> list[Tensor]:
    """Outputs of the joined op, gradients of group_probs and of the logits."""
    case = {name: x.to(device) for name, x in case.items()}
    source, probs = (case[name].clone().requires_grad_() for name in ("logits_NV", "group_probs_BM"))
    options = {**OBJECTIVE, "temperature": 0.8, "inplace_backward": inplace}
    out = op(**{**case, "logits_NV": source * 1.0, "group_probs_BM": probs}, **options)
    outputs = [*out.objective, out.entropy_B]
    loss = sum(
        (x * torch.linspace(-1, 2, x.numel(), device=device).reshape(x.shape)).sum() for x in outputs if x.requires_grad
    )
    loss.backward()
    return [*(x.detach() for x in outputs), probs.grad, source.grad]  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "columns"), [([7, 0, 130, 1], 4099), ([1100], 257), ([3] * 300, 9), ([0, 0], 9), ([], 9)]
)
def test_token_objective(lengths: list[int], columns: int, dtype: torch.dtype) -> None:
    case = joined_case(lengths, columns, 3, dtype, slack=2)
    first = joined(case, DEVICE)
    cpu, exact = joined(case, "cpu"), joined(widened(case), "cpu", reference.token_objective)
    for got, want, true in zip(first, cpu, exact, strict=True):
        # A token's coefficient is a sum of terms that may cancel: hence 1e-5 of their size, which is 1.
        if got.dtype in HALF:
            within_ulp(got.cpu(), true, slack=1e-5)
        else:
            torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(got.cpu().double(), true, rtol=1e-5, atol=1e-5)
    assert same_bits(first, joined(case, DEVICE)) and same_bits(first, joined(case, DEVICE, inplace=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kl_estimator", ESTIMATORS)
def test_shape_and_gae(kl_estimator: str, dtype: torch.dtype) -> None:
    for gamma, lam in ((0.99, 0.95), (1.0, 0.999)):
        options = {"gamma": gamma, "lam": lam, "kl_estimator": kl_estimator}
        for batch, time in ((6, 700), (300, 5), (1, 256), (3, 1025), (0, 4), (2, 0)):
            case = shaping_case(batch, time, dtype)
            cuda = shape_and_gae(**on_device(case), **options)
            for others in (
                shape_and_gae(**case, **options),
                reference.shape_and_gae(**widened(case), **options),
            ):
                for got, want in zip(cuda, others, strict=True):
                    torch.testing.assert_close(got.cpu().double(), want.double(), rtol=1e-5, atol=1e-4)
