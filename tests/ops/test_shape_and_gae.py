"""Op C against its float64 reference and against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gipo_mc.ops import ShapedAdvantages, reference, shape_and_gae
from tests.ops.cases import DTYPES, ESTIMATORS, close, shaping_case, widened

OPTIONS = {"gamma": 0.97, "lam": 0.9, "kl_estimator": "k3"}


def compare(case: dict[str, Tensor], **options: Any) -> ShapedAdvantages:
    got = shape_and_gae(**case, **{**OPTIONS, **options})
    want = reference.shape_and_gae(**widened(case), **{**OPTIONS, **options})
    # A sum in which large advantages cancel is as exact as they are, not as it is small itself.
    size = 1 + float(want.advantage_BT.abs().sum())
    for name, a, b in zip(ShapedAdvantages._fields, got, want, strict=True):
        if name == "sum":
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * size)
        else:
            close(a, b, name)
    padding = torch.arange(case["values_BT"].shape[1]) >= case["length_B"][:, None]
    assert all((x[padding] == 0).all() for x in (got.reward_BT, got.advantage_BT, got.return_BT))
    assert got.count.dtype == got.sum.dtype == got.sum_sq.dtype == torch.float64
    return got


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 9),
    time=st.integers(0, 70),
    dtype=st.sampled_from([*DTYPES, torch.float64]),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    kl_estimator=st.sampled_from(ESTIMATORS),
    seed=st.integers(0, 1000),
)
def test_odd_sizes(
    batch: int, time: int, dtype: torch.dtype, gamma: float, lam: float, kl_estimator: str, seed: int
) -> None:
    compare(shaping_case(batch, time, dtype, seed), gamma=gamma, lam=lam, kl_estimator=kl_estimator)


def test_hand_computed_numbers() -> None:
    """Three tokens, gamma 0.5, lambda 0.5, KLs 1, 0, -2 at weight 0.1, reward 4 at the last token."""
    out = shape_and_gae(
        torch.tensor([[1.0, 0.0, -2.0, 7.0]]),
        torch.zeros(1, 4),
        torch.tensor([[1.0, 2.0, 3.0, 9.0]]),
        torch.tensor([4.0]),
        torch.tensor([3]),
        torch.tensor([0.1]),
        gamma=0.5,
        lam=0.5,
        kl_estimator="k1",
    )
    close(out.reward_BT, torch.tensor([[-0.1, 0.0, 4.2, 0.0]]))
    last = 4.2 - 3.0  # no value after the last token, whatever the padding holds
    middle = (0.0 + 0.5 * 3.0 - 2.0) + 0.25 * last
    first = (-0.1 + 0.5 * 2.0 - 1.0) + 0.25 * middle
    close(out.advantage_BT, torch.tensor([[first, middle, last, 0.0]]))
    close(out.return_BT, torch.tensor([[first + 1, middle + 2, last + 3, 0.0]]))
    close(out.kl_B, torch.tensor([-1.0]))
    advantages = torch.tensor([first, middle, last], dtype=torch.float64)
    close(
        torch.stack((out.count, out.sum, out.sum_sq)),
        torch.stack((torch.tensor(3.0).double(), advantages.sum(), advantages.square().sum())),
    )


def test_lambda_one_is_the_discounted_return() -> None:
    case = shaping_case(4, 25)
    out = shape_and_gae(**case, gamma=0.9, lam=1.0, kl_estimator="k1")
    expected = torch.zeros(4, 26, dtype=torch.float64)
    for t in range(24, -1, -1):
        expected[:, t] = out.reward_BT[:, t] + 0.9 * expected[:, t + 1]
    close(out.return_BT, expected[:, :-1])


def test_no_kl_weight_leaves_the_reward_at_the_last_token() -> None:
    case = {**shaping_case(4, 9), "kl_weight_B": torch.zeros(4)}
    out = compare(case, kl_estimator="k2")
    assert torch.equal(out.reward_BT.sum(1), case["reward_B"].where(case["length_B"] > 0, 0.0))


@pytest.mark.parametrize(("batch", "time"), [(0, 4), (0, 0), (3, 0), (1, 1)])
def test_empty_and_smallest(batch: int, time: int) -> None:
    compare(shaping_case(batch, time))


def test_all_rows_without_tokens() -> None:
    case = {**shaping_case(3, 6), "length_B": torch.zeros(3, dtype=torch.int64)}
    out = shape_and_gae(**case, **OPTIONS)
    assert all((x == 0).all() for x in out)


def test_transposed_and_expanded_inputs_are_not_read_as_contiguous() -> None:
    case = shaping_case(5, 18)
    expected = shape_and_gae(**case, **OPTIONS)
    strided = {name: x.t().contiguous().t() if x.dim() == 2 else x for name, x in case.items()}
    for a, b in zip(shape_and_gae(**strided, **OPTIONS), expected, strict=True):
        assert torch.equal(a, b)
    compare({**case, "kl_weight_B": torch.tensor(0.05).expand(5)})


def test_bits_do_not_depend_on_the_run_or_the_number_of_threads() -> None:
    case = shaping_case(65, 513)
    runs = []
    for threads in (1, 1, 2, 5):
        torch.set_num_threads(threads)
        runs.append(shape_and_gae(**case, **OPTIONS))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


def test_nothing_carries_a_gradient() -> None:
    case = shaping_case(2, 5)
    case["values_BT"].requires_grad_()
    assert not any(x.requires_grad for x in shape_and_gae(**case, **OPTIONS))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    case = {name: torch.nan_to_num(x) for name, x in shaping_case(3, 5, dtype).items()}
    torch.library.opcheck(torch.ops.gipo_mc.shape_and_gae.default, (*case.values(), 0.97, 0.9, 2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"values_BT": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "values_BT has dtype"),
        ({"values_BT": torch.zeros(3)}, ValueError, r"give \[B, T\]"),
        ({"reference_logp_BT": torch.zeros(3, 4).double()}, TypeError, "reference_logp_BT has dtype"),
        ({"reward_B": torch.zeros(4)}, ValueError, r"reward_B has shape \[4\]"),
        ({"length_B": torch.tensor([5, 0, 0])}, ValueError, "values from 0 to 5, but T=4"),
        ({"kl_weight_B": 0.1}, TypeError, "kl_weight_B must be a tensor, not float"),
        ({"gamma": 1.1}, ValueError, "gamma=1.1 must be at most 1"),
        ({"lam": -0.1}, ValueError, "lam=-0.1"),
        ({"kl_estimator": "k0"}, ValueError, "kl_estimator='k0'"),
    ],
)
def test_wrong_arguments_are_python_errors(change: dict, error: type[Exception], message: str) -> None:
    case = {**shaping_case(3, 4), "length_B": torch.tensor([4, 2, 1])}
    with pytest.raises(error, match=message):
        shape_and_gae(**{**case, **OPTIONS, **change})
