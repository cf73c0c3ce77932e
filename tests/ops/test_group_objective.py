"""Op B against its float64 reference, alone and as part of the group variance of a split mini-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gipo_mc.ops import GroupObjective, group_objective, group_variance, reference
from gipo_mc.ops import group_objective as public_op
from tests.ops.cases import DTYPES, ESTIMATORS, HALF, SIGNAL_FORMS, close, objective_case, widened, within_ulp

OPTIONS = {"clip": 0.2, "kl_estimator": "k3", "signal_form": "ratio"}
DIFFERENTIABLE = ("signal_B", "surrogate_B", "kl_B", "mass_M", "weighted_M", "weighted_kl")


def run(
    op: Callable[..., GroupObjective],
    case: dict[str, Tensor],
    fields: tuple[str, ...] = DIFFERENTIABLE,
    **options: Any,
) -> tuple[GroupObjective, Tensor, Tensor]:
    """(outputs, gradient of logp, gradient of group_probs) for fixed upstream gradients of `fields`."""
    logp = case["logp_BT"].clone().requires_grad_()
    probs = case["group_probs_BM"].clone().requires_grad_()
    out = op(**{**case, "logp_BT": logp, "group_probs_BM": probs}, **{**OPTIONS, **options})
    chosen = [getattr(out, name) for name in fields]
    upstream = [torch.linspace(-1.0, 2.0, x.numel(), dtype=torch.float64).reshape(x.shape).to(x.dtype) for x in chosen]
    wanted = [(x, g) for x, g in zip(chosen, upstream, strict=True) if x.requires_grad]
    torch.autograd.backward([x for x, _ in wanted], [g for _, g in wanted])
    zeros = [torch.zeros_like(x) if x.grad is None else x.grad for x in (logp, probs)]
    return GroupObjective(*(x.detach() for x in out)), zeros[0], zeros[1]


def compare(case: dict[str, Tensor], **options: Any) -> None:
    got, logp_gradient, probs_gradient = run(group_objective, case, **options)
    want, logp_exact, probs_exact = run(reference.group_objective, widened(case), **options)
    for name, a, b in zip(GroupObjective._fields, got, want, strict=True):
        close(a, b, name)
    close(probs_gradient, probs_exact, "group_probs gradient")
    if logp_gradient.dtype in HALF:
        within_ulp(logp_gradient, logp_exact, slack=1e-6)
    else:
        close(logp_gradient, logp_exact, "logp gradient")
    padding = torch.arange(case["logp_BT"].shape[1]) >= case["length_B"][:, None]
    assert (logp_gradient[padding] == 0).all()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("signal_form", SIGNAL_FORMS)
@pytest.mark.parametrize("kl_estimator", ESTIMATORS)
def test_every_estimator_and_signal_form(kl_estimator: str, signal_form: str, dtype: torch.dtype) -> None:
    compare(
        objective_case(6, 45, 3, dtype, lengths=[0, 1, 16, 17, 33, 45]),
        kl_estimator=kl_estimator,
        signal_form=signal_form,
    )


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(0, 9),
    time=st.integers(0, 50),
    groups=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    clip=st.sampled_from([0.05, 0.2, 1.5]),
    kl_estimator=st.sampled_from(ESTIMATORS),
    signal_form=st.sampled_from(SIGNAL_FORMS),
    seed=st.integers(0, 1000),
)
def test_odd_sizes(
    batch: int, time: int, groups: int, dtype: torch.dtype, clip: float, kl_estimator: str, signal_form: str, seed: int
) -> None:
    case = objective_case(batch, time, groups, dtype, seed)
    compare(case, clip=clip, kl_estimator=kl_estimator, signal_form=signal_form)


@pytest.mark.parametrize("field", DIFFERENTIABLE)
def test_gradient_of_one_output_alone(field: str) -> None:
    case = objective_case(5, 20, 2)
    got, want = run(group_objective, case, (field,)), run(reference.group_objective, widened(case), (field,))
    close(got[1], want[1], "logp gradient")
    close(got[2], want[2], "group_probs gradient")


def test_hand_computed_numbers() -> None:
    """Two tokens with ratios 1.5 and 0.5, advantages 1 and -2, clip 0.2, and KLs of ln 2 and 0."""
    case = {
        "logp_BT": torch.tensor([[1.5, 0.5, 9.0]]).log(),
        "behaviour_logp_BT": torch.zeros(1, 3),
        "reference_logp_BT": torch.tensor([[0.75, 0.5, 1.0]]).log(),
        "advantage_BT": torch.tensor([[1.0, -2.0, 5.0]]),
        "length_B": torch.tensor([2]),
        "group_probs_BM": torch.tensor([[0.25, 0.75]]),
        "behaviour_signal_B": torch.tensor([3.0]),
        "kl_weight_B": torch.tensor([0.5]),
    }
    out = group_objective(**case, clip=0.2, kl_estimator="k1", signal_form="ratio")
    ln2 = 0.6931472
    close(out.signal_B, torch.tensor([3 + (0.5 * 1 + -0.5 * -2) / 2]))
    close(out.surrogate_B, torch.tensor([1.2 - 1.6]))
    close(out.kl_B, torch.tensor([ln2]))
    assert out.clipped_B.tolist() == [2.0]
    close(out.ratio_max_B, torch.tensor([1.5]))
    close(out.behaviour_kl_B, torch.tensor([0.5 - 0.4054651 + -0.5 + ln2]))
    close(out.mass_M, torch.tensor([0.25, 0.75]))
    close(out.weighted_M, torch.tensor([0.25, 0.75]) * 3.75)
    close(out.weighted_kl, torch.tensor(ln2 / 2))


def test_signal_of_the_ratio_at_the_behaviour_policy_is_the_signal_with_the_gradient_of_ppo() -> None:
    case = objective_case(4, 12, 2, lengths=[12, 5, 1, 12])
    case["behaviour_logp_BT"] = case["logp_BT"]
    logp = case["logp_BT"].clone().requires_grad_()
    out = group_objective(**{**case, "logp_BT": logp}, **OPTIONS)
    assert torch.equal(out.signal_B, case["behaviour_signal_B"]) and (out.clipped_B == 0).all()
    out.signal_B.sum().backward()
    valid = torch.arange(12) < case["length_B"][:, None]
    close(logp.grad, (case["advantage_BT"] / case["length_B"][:, None]).where(valid, 0.0))


def test_a_token_on_the_edge_of_the_clip_keeps_its_gradient() -> None:
    """As torch.clamp and torch.minimum do; a zero advantage is never counted as clipped."""
    case = objective_case(1, 3, 1, lengths=[3])
    case["logp_BT"] = torch.tensor([[1.5, 3.0, 3.0]]).log()
    case["behaviour_logp_BT"], case["advantage_BT"] = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.0]])
    logp = case["logp_BT"].clone().requires_grad_()
    out = group_objective(**{**case, "logp_BT": logp}, **{**OPTIONS, "clip": 0.5000001})
    out.surrogate_B.sum().backward()
    assert out.clipped_B.item() == 1.0
    close(logp.grad, torch.tensor([[1.5, 0.0, 0.0]]))


def test_an_overflowing_ratio_does_not_reach_outputs_that_were_not_used() -> None:
    case = objective_case(2, 4, 2, lengths=[4, 4])
    case["behaviour_logp_BT"] = case["behaviour_logp_BT"] - 500.0
    logp = case["logp_BT"].clone().requires_grad_()
    out = group_objective(**{**case, "logp_BT": logp}, **{**OPTIONS, "kl_estimator": "k1", "signal_form": "log_prob"})
    assert (out.ratio_max_B == torch.inf).all()
    (out.signal_B.sum() + out.kl_B.sum()).backward()
    close(logp.grad, case["advantage_BT"] + 1)


def test_a_nan_inside_the_response_shows() -> None:
    case = objective_case(2, 40, 2, lengths=[40, 40])
    case["logp_BT"][0, 3] = torch.nan
    out = group_objective(**case, **OPTIONS)
    for field in (out.signal_B, out.surrogate_B, out.kl_B, out.ratio_max_B, out.behaviour_kl_B):
        assert field.isnan().tolist() == [True, False]
    assert out.mass_M.isfinite().all() and out.weighted_M.isnan().all()


@pytest.mark.parametrize("signal_form", SIGNAL_FORMS)
def test_sequences_without_tokens(signal_form: str) -> None:
    case = objective_case(3, 7, 2, lengths=[0, 0, 0])
    compare(case, signal_form=signal_form)
    out = group_objective(**case, **{**OPTIONS, "signal_form": signal_form})
    assert torch.equal(out.signal_B, case["behaviour_signal_B"] if signal_form == "ratio" else torch.zeros(3))
    assert all((x == 0).all() for x in (out.surrogate_B, out.kl_B, out.clipped_B, out.ratio_max_B, out.behaviour_kl_B))


@pytest.mark.parametrize(("batch", "time"), [(0, 5), (0, 0), (3, 0), (1, 1)])
def test_empty_and_smallest(batch: int, time: int) -> None:
    compare(objective_case(batch, time, 2))


def test_transposed_and_expanded_inputs_are_not_read_as_contiguous() -> None:
    case = objective_case(5, 18, 3, lengths=[18, 3, 0, 18, 9])
    expected = group_objective(**case, **OPTIONS)
    strided = {name: x.t().contiguous().t() if x.dim() == 2 else x for name, x in case.items()}
    strided["behaviour_signal_B"] = torch.stack((case["behaviour_signal_B"], torch.zeros(5)), 1)[:, 0]
    for a, b in zip(group_objective(**strided, **OPTIONS), expected, strict=True):
        assert torch.equal(a, b)
    compare({**case, "advantage_BT": torch.randn(5, 1).expand(5, 18)})
    compare({**case, "behaviour_signal_B": torch.tensor(0.3).expand(5)})


def test_bits_do_not_depend_on_the_run_or_the_number_of_threads() -> None:
    case = objective_case(65, 513, 3)
    runs = []
    for threads in (1, 1, 2, 5):
        torch.set_num_threads(threads)
        out, *gradients = run(group_objective, case)
        runs.append((*out, *gradients))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


@pytest.mark.parametrize("signal_form", SIGNAL_FORMS)
@pytest.mark.parametrize("kl_estimator", ESTIMATORS)
def test_gradcheck(kl_estimator: str, signal_form: str) -> None:
    case = objective_case(3, 4, 2, torch.float64, lengths=[4, 2, 0])
    case = {name: torch.nan_to_num(x) for name, x in case.items()}

    def outputs(logp: Tensor, probs: Tensor) -> tuple[Tensor, ...]:
        arguments = {**case, "logp_BT": logp, "group_probs_BM": probs}
        out = public_op(**arguments, clip=0.2, kl_estimator=kl_estimator, signal_form=signal_form)
        return tuple(getattr(out, name) for name in DIFFERENTIABLE)

    assert torch.autograd.gradcheck(
        outputs, (case["logp_BT"].requires_grad_(), case["group_probs_BM"].clone().requires_grad_())
    )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    case = {name: torch.nan_to_num(x) for name, x in objective_case(3, 5, 2, dtype, lengths=[5, 2, 0]).items()}
    torch.library.opcheck(torch.ops.gipo_mc.group_objective.default, (*case.values(), 0.2, 2, 0))
    arguments = [x for name, x in case.items() if name != "behaviour_signal_B"]
    wide = case["behaviour_signal_B"].dtype
    of_B, of_M = torch.ones(3, dtype=wide), torch.ones(2, dtype=wide)
    upstream = (of_B, of_B, None, of_M, None, of_B[0])
    numbers = (torch.ones(3, dtype=wide), 0.2, 2, 0)
    torch.library.opcheck(torch.ops.gipo_mc.group_objective_gradient.default, (*arguments, *numbers, *upstream))


def test_compiled_as_a_whole() -> None:
    case = objective_case(4, 9, 2, torch.float32)

    def loss(logp: Tensor, probs: Tensor) -> Tensor:
        out = group_objective(**{**case, "logp_BT": logp, "group_probs_BM": probs}, **OPTIONS)
        return out.surrogate_B.sum() + out.weighted_M.square().sum() - out.weighted_kl

    leaves = [[case[name].clone().requires_grad_() for name in ("logp_BT", "group_probs_BM")] for _ in range(2)]
    loss(*leaves[0]).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves[1]).backward()
    for eager, compiled in zip(*leaves, strict=True):
        assert eager.grad is not None and torch.equal(eager.grad, compiled.grad)


@pytest.mark.parametrize("weights", ["size", "population"])
def test_variance_of_the_whole_mini_batch_from_unequal_micro_batches(weights: str) -> None:
    """Sums add up over any split, the means of micro-batches do not; and the gradient is that of the whole."""
    case = objective_case(12, 30, 3, torch.float64)
    whole = group_objective(**case, **OPTIONS)
    expected = group_variance(whole.mass_M, whole.weighted_M, 12, weights=weights)
    parts = [{name: x[rows] for name, x in case.items()} for rows in (slice(0, 1), slice(1, 8), slice(8, 12))]
    outputs = [group_objective(**part, **OPTIONS) for part in parts]
    mass, weighted = (sum(getattr(o, name) for o in outputs) for name in ("mass_M", "weighted_M"))
    torch.testing.assert_close(group_variance(mass, weighted, 12, weights=weights), expected)
    mean = sum(
        group_variance(o.mass_M, o.weighted_M, len(o.signal_B), weights=weights).variance for o in outputs
    ) / len(outputs)
    assert abs(mean - expected.variance) > 0.1 * expected.variance


def test_group_variance_identities() -> None:
    mass, weighted = torch.tensor([3.0, 1.0]).double(), torch.tensor([6.0, -1.0]).double()  # R = 2 and -1, D = 3
    population = group_variance(mass, weighted, 4, weights="population")
    torch.testing.assert_close(population.objective_M, torch.tensor([2.0, -1.0]).double())
    torch.testing.assert_close(population.variance, torch.tensor(9.0 / 4).double())
    size = group_variance(mass, weighted, 4, weights="size")
    torch.testing.assert_close(size.mean, torch.tensor(5.0 / 4).double())
    torch.testing.assert_close(size.variance, torch.tensor(0.75 * 0.25 * 9).double())
    for weights in ("size", "population"):
        scaled = group_variance(mass, 3 * weighted, 4, weights=weights)  # S -> 3 S
        moved = group_variance(mass, weighted + 7 * mass, 4, weights=weights)  # S -> S + 7
        plain = group_variance(mass, weighted, 4, weights=weights)
        torch.testing.assert_close(scaled.variance, 9 * plain.variance)
        torch.testing.assert_close(moved.variance, plain.variance)
        assert group_variance(mass[:1], weighted[:1], 3, weights=weights).variance == 0  # M = 1


@pytest.mark.parametrize("weights", ["size", "population"])
def test_an_empty_group_is_finite_and_left_out(weights: str) -> None:
    mass = torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    weighted = torch.tensor([6.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    result = group_variance(mass, weighted, 4, weights=weights)
    without = group_variance(mass[::2], weighted[::2], 4, weights=weights)
    torch.testing.assert_close(result.variance, without.variance)
    assert result.objective_M[1] == 0
    result.variance.backward()
    assert mass.grad.isfinite().all() and weighted.grad.isfinite().all()
    assert mass.grad[1] == 0 and weighted.grad[1] == 0
    nothing = group_variance(torch.zeros(2), torch.zeros(2), 0, weights=weights)
    assert nothing.variance == 0 and nothing.mean == 0


@pytest.mark.parametrize("weights", ["size", "population"])
def test_group_variance_gradcheck(weights: str) -> None:
    mass = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
    weighted = torch.tensor([6.0, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, w: tuple(group_variance(m, w, 6, weights=weights)), (mass, weighted))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logp_BT": torch.zeros(3, dtype=torch.int64)}, TypeError, "logp_BT has dtype"),
        ({"logp_BT": torch.zeros(3)}, ValueError, r"give \[B, T\]"),
        ({"advantage_BT": torch.zeros(3, 5)}, ValueError, r"advantage_BT has shape \[3, 5\]"),
        ({"reference_logp_BT": torch.zeros(3, 4).double()}, TypeError, "reference_logp_BT has dtype torch.float64"),
        ({"length_B": torch.tensor([1, 2, 5])}, ValueError, "values from 1 to 5, but T=4"),
        ({"length_B": torch.tensor([-1, 2, 4])}, ValueError, "values from -1 to 4"),
        ({"length_B": torch.tensor([1.0, 2.0, 3.0])}, TypeError, "length_B has dtype"),
        ({"group_probs_BM": torch.zeros(3, 0)}, ValueError, "at least one group"),
        ({"group_probs_BM": torch.zeros(2, 2)}, ValueError, r"group_probs_BM has shape \[2, 2\]"),
        ({"kl_weight_B": None}, TypeError, "kl_weight_B must be a tensor"),
        ({"behaviour_signal_B": torch.zeros(3, device="meta")}, ValueError, "behaviour_signal_B is on meta"),
        ({"clip": 0.0}, ValueError, "clip=0.0"),
        ({"kl_estimator": "k4"}, ValueError, "kl_estimator='k4' is not known"),
        ({"signal_form": "sum"}, ValueError, "signal_form='sum' is not known"),
    ],
)
def test_wrong_arguments_are_python_errors(change: dict, error: type[Exception], message: str) -> None:
    case = objective_case(3, 4, 2, lengths=[4, 2, 1])
    with pytest.raises(error, match=message):
        group_objective(**{**case, **OPTIONS, **change})
    with pytest.raises(ValueError, match="weights='sizes'"):
        group_variance(torch.ones(2), torch.ones(2), 2, weights="sizes")  # type: ignore[arg-type]
