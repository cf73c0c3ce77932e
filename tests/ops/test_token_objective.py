"""Ops A and B joined: against both of them one after the other, and against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gipo_mc.ops import TokenObjective, group_objective, reference, token_objective, token_statistics
from tests.ops.cases import DTYPES, ESTIMATORS, HALF, SIGNAL_FORMS, close, joined_case, widened, within_ulp

OPTIONS = {"clip": 0.2, "kl_estimator": "k3", "signal_form": "ratio"}
DIFFERENTIABLE = ("signal_B", "surrogate_B", "kl_B", "mass_M", "weighted_M", "weighted_kl", "entropy_B")
Result = tuple[dict[str, Tensor], Tensor, Tensor]


def run(
    op: Callable[..., TokenObjective], case: dict[str, Tensor], fields: tuple[str, ...] = DIFFERENTIABLE, **options: Any
) -> Result:
    """(outputs by name, gradient of the logits, gradient of group_probs) for fixed upstream gradients of `fields`."""
    source = case["logits_NV"].clone().requires_grad_()
    probs = case["group_probs_BM"].clone().requires_grad_()
    out = op(**{**case, "logits_NV": source * 1.0, "group_probs_BM": probs}, **{**OPTIONS, **options})
    outputs = {**out.objective._asdict(), "entropy_B": out.entropy_B}
    chosen = [outputs[name] for name in fields]
    upstream = [torch.linspace(-1.0, 2.0, x.numel(), dtype=torch.float64).reshape(x.shape).to(x.dtype) for x in chosen]
    wanted = [(x, g) for x, g in zip(chosen, upstream, strict=True) if x.requires_grad]
    torch.autograd.backward([x for x, _ in wanted], [g for _, g in wanted])
    zeros = [torch.zeros_like(x) if x.grad is None else x.grad for x in (source, probs)]
    return {name: x.detach() for name, x in outputs.items()}, zeros[0], zeros[1]


def compare(case: dict[str, Tensor], **options: Any) -> None:
    """A token's coefficient is a sum of terms that may cancel: hence 1e-5 of their size, which is 1."""
    got, logits_gradient, probs_gradient = run(token_objective, case, **options)
    want, logits_exact, probs_exact = run(reference.token_objective, widened(case), **options)
    for name, value in got.items():
        close(value, want[name], name)
    close(probs_gradient, probs_exact, "group_probs gradient")
    if logits_gradient.dtype in HALF:
        within_ulp(logits_gradient, logits_exact, slack=1e-5)
    else:
        torch.testing.assert_close(logits_gradient.double(), logits_exact, rtol=1e-5, atol=1e-5)


def one_after_the_other(logits_NV: Tensor, targets_N: Tensor, **arguments: Any) -> TokenObjective:
    """What the op joins, as the losses would otherwise do it."""
    options = {name: arguments.pop(name) for name in ("vocab_size", "temperature") if name in arguments}
    tokens = token_statistics(logits_NV, targets_N, **options)
    length_B = arguments["length_B"]
    where = torch.nonzero(torch.arange(arguments["advantage_BT"].shape[1]) < length_B[:, None], as_tuple=True)
    padded = [x.new_zeros(arguments["advantage_BT"].shape).index_put(where, x) for x in tokens]
    return TokenObjective(group_objective(padded[0], **arguments), padded[1].sum(1))


@pytest.mark.parametrize("signal_form", SIGNAL_FORMS)
@pytest.mark.parametrize("kl_estimator", ESTIMATORS)
def test_every_estimator_and_signal_form(kl_estimator: str, signal_form: str) -> None:
    for dtype in (*DTYPES, torch.float64):
        case = joined_case([3, 0, 1, 9, 4], 37, 3, dtype)
        compare(case, kl_estimator=kl_estimator, signal_form=signal_form, temperature=0.8)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=7),
    columns=st.integers(1, 60),
    extra=st.integers(0, 4),
    padding=st.integers(0, 20),
    groups=st.integers(1, 4),
    slack=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    seed=st.integers(0, 1000),
)
def test_odd_sizes_and_strides(
    lengths: list[int],
    columns: int,
    extra: int,
    padding: int,
    groups: int,
    slack: int,
    dtype: torch.dtype,
    temperature: float,
    seed: int,
) -> None:
    vocabulary = max(1, columns - padding)
    case = joined_case(lengths, columns, groups, dtype, seed, vocabulary=vocabulary, slack=slack)
    wide = torch.zeros(len(case["logits_NV"]), columns + extra, dtype=dtype)
    wide[:, :columns] = case["logits_NV"]
    case["logits_NV"] = wide[:, :columns]
    compare(case, vocab_size=vocabulary, temperature=temperature)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_after_the_other_gives_the_same(dtype: torch.dtype) -> None:
    case = joined_case([17, 0, 40, 1], 257, 2, dtype, vocabulary=250)
    options = {"vocab_size": 250, "temperature": 0.9}
    got, *gradients = run(token_objective, case, **options)
    want, *expected = run(one_after_the_other, case, **options)
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("field", DIFFERENTIABLE)
def test_gradient_of_one_output_alone(field: str) -> None:
    case = joined_case([5, 2, 0], 20, 2)
    got = run(token_objective, case, (field,))
    want = run(reference.token_objective, widened(case), (field,))
    close(got[1], want[1], "logits gradient")
    close(got[2], want[2], "group_probs gradient")


def test_statistics_have_no_gradient() -> None:
    case = joined_case([5, 2], 20, 2)
    case["logits_NV"].requires_grad_()
    objective, entropy_B = token_objective(**case, **OPTIONS)
    for name, value in objective._asdict().items():
        assert value.requires_grad is (name in DIFFERENTIABLE), name
    assert entropy_B.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_inplace_backward_gives_the_same_gradient_in_the_memory_of_the_logits(dtype: torch.dtype) -> None:
    case = joined_case([5, 0, 2], 45, 2, dtype)
    gradients = []
    for inplace in (False, True):
        source = case["logits_NV"].clone().requires_grad_()
        logits = source * 1.0
        out = token_objective(**{**case, "logits_NV": logits}, **OPTIONS, vocab_size=45, inplace_backward=inplace)
        seen: list[Tensor] = []
        logits.register_hook(seen.append)
        (out.objective.surrogate_B.sum() - out.entropy_B.sum()).backward()
        assert (seen[0].data_ptr() == logits.data_ptr()) is inplace
        gradients.append(source.grad)
    assert torch.equal(*gradients)


def test_inplace_backward_with_a_second_consumer_fails_loudly() -> None:
    case = joined_case([5, 2], 20, 2)
    logits = case["logits_NV"].requires_grad_() * 1.0
    squares = logits.square().sum()
    out = token_objective(**{**case, "logits_NV": logits}, **OPTIONS, inplace_backward=True)
    out.objective.surrogate_B.sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()
    with pytest.raises(ValueError, match="leaf"):
        token_objective(**case, **OPTIONS, inplace_backward=True)


def test_padded_columns_and_the_padding_of_the_responses_never_matter() -> None:
    case = joined_case([6, 3, 0], 24, 2, vocabulary=20, slack=4)
    assert case["advantage_BT"].isnan().any()
    poisoned = {**case, "logits_NV": case["logits_NV"].clone()}
    poisoned["logits_NV"][:, 20:] = torch.nan
    runs = [run(token_objective, x, vocab_size=20) for x in (case, poisoned)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0].values(), runs[1][0].values(), strict=True))
    assert (runs[1][1][:, 20:] == 0).all() and torch.equal(runs[0][1], runs[1][1])


def test_a_nan_logit_shows_in_its_sequence_only() -> None:
    case = joined_case([4, 5, 3], 30, 2)
    case["logits_NV"][6, 11] = torch.nan
    objective, entropy_B = token_objective(**case, **OPTIONS)
    for field in (objective.surrogate_B, objective.kl_B, objective.ratio_max_B, entropy_B):
        assert field.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("lengths", [[], [0, 0], [1]])
def test_empty_and_smallest(lengths: list[int]) -> None:
    compare(joined_case(lengths, 12, 2))


def test_transposed_token_inputs_are_not_read_as_contiguous() -> None:
    case = joined_case([5, 0, 7], 18, 3)
    expected = run(token_objective, case)
    strided = {name: x if name == "logits_NV" else x.t().contiguous().t() for name, x in case.items()}
    strided["behaviour_signal_B"] = torch.stack((case["behaviour_signal_B"], torch.zeros(3)), 1)[:, 0]
    strided["targets_N"] = torch.stack((case["targets_N"], torch.zeros(12, dtype=torch.int64)), 1)[:, 0]
    found = run(token_objective, strided)
    assert all(torch.equal(found[0][name], x) for name, x in expected[0].items())
    assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_run_or_the_number_of_threads(dtype: torch.dtype) -> None:
    case = joined_case([40, 0, 33, 64], 1025, 3, dtype)  # enough for several threads
    runs = []
    for threads in (1, 1, 2, 5):
        torch.set_num_threads(threads)
        outputs, *gradients = run(token_objective, case)
        runs.append((*outputs.values(), *gradients))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


@pytest.mark.parametrize("signal_form", SIGNAL_FORMS)
@pytest.mark.parametrize("kl_estimator", ESTIMATORS)
def test_gradcheck(kl_estimator: str, signal_form: str) -> None:
    case = joined_case([3, 0, 1], 9, 2, torch.float64)

    def outputs(logits: Tensor, probs: Tensor) -> tuple[Tensor, ...]:
        arguments = {**case, "logits_NV": logits, "group_probs_BM": probs}
        options = {
            "clip": 0.2,
            "kl_estimator": kl_estimator,
            "signal_form": signal_form,
            "vocab_size": 8,
            "temperature": 0.8,
        }
        out = token_objective(**arguments, **options)
        return (*(getattr(out.objective, name) for name in DIFFERENTIABLE[:-1]), out.entropy_B)

    case["targets_N"].clamp_(max=7)
    inputs = (case["logits_NV"].requires_grad_(), case["group_probs_BM"].clone().requires_grad_())
    assert torch.autograd.gradcheck(outputs, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    case = {name: torch.nan_to_num(x) for name, x in joined_case([4, 0, 2], 10, 2, dtype).items()}
    signal = case.pop("behaviour_signal_B")
    tensors = list(case.values())
    numbers = (10, 0.9, 0.2, 2, 0)
    operators = torch.ops.gipo_mc
    torch.library.opcheck(operators.token_objective.default, (*tensors, *numbers, signal))
    sequence_7B, _, statistics_4N = operators.token_objective(*tensors, *numbers, signal)
    of_B, of_M = torch.ones_like(sequence_7B[0]), torch.ones(2)
    upstream = (sequence_7B[0], statistics_4N, of_B, None, of_B, None, of_M, of_B[0], of_B)
    torch.library.opcheck(operators.token_objective_gradient.default, (*tensors, *numbers, *upstream))
    torch.library.opcheck(operators.token_objective_gradient_.default, (*tensors, *numbers, *upstream))


def test_compiled_as_a_whole() -> None:
    case = joined_case([4, 0, 2], 10, 2)

    def loss(logits: Tensor, probs: Tensor) -> Tensor:
        out = token_objective(**{**case, "logits_NV": logits * 2, "group_probs_BM": probs}, **OPTIONS)
        return out.objective.surrogate_B.sum() + out.objective.weighted_M.square().sum() - out.entropy_B.sum()

    leaves = [[case[name].clone().requires_grad_() for name in ("logits_NV", "group_probs_BM")] for _ in range(2)]
    loss(*leaves[0]).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves[1]).backward()
    for eager, compiled in zip(*leaves, strict=True):
        assert eager.grad is not None and torch.equal(eager.grad, compiled.grad)


def test_logits_without_gradient_are_never_written_over() -> None:
    case = joined_case([4, 0, 2], 10, 2)
    before = case["logits_NV"].clone()
    case["group_probs_BM"].requires_grad_()
    token_objective(**case, **OPTIONS, inplace_backward=True).objective.weighted_M.sum().backward()
    assert torch.equal(case["logits_NV"], before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits_NV": torch.zeros(7, 4, dtype=torch.int32)}, TypeError, "logits_NV has dtype torch.int32"),
        ({"logits_NV": torch.zeros(4, 7).t()}, ValueError, "not contiguous"),
        ({"targets_N": torch.full((7,), -100)}, ValueError, r"targets_N\[0\] = -100 is outside"),
        ({"vocab_size": 5}, ValueError, "vocab_size=5, but logits_NV has 4 columns"),
        ({"temperature": 0.0}, ValueError, "temperature=0.0"),
        ({"length_B": torch.tensor([4, 2])}, ValueError, "adds up to 6 tokens, but logits_NV has 7 rows"),
        ({"length_B": torch.tensor([9, -2])}, ValueError, "values from -2 to 9"),
        ({"advantage_BT": torch.zeros(2, 4)}, ValueError, r"advantage_BT has shape \[2, 4\]"),
        ({"behaviour_logp_BT": torch.zeros(2)}, ValueError, r"behaviour_logp_BT has shape \[2\]; give \[B, T\]"),
        ({"reference_logp_BT": torch.zeros(2, 5).bfloat16()}, TypeError, "reference_logp_BT has dtype"),
        ({"group_probs_BM": torch.zeros(2, 0)}, ValueError, "at least one group"),
        ({"group_probs_BM": torch.zeros(2, 2)}, ValueError, "its rows add up to 0 to 0"),
        ({"kl_weight_B": torch.tensor([1.0, -1.0])}, ValueError, "must be finite and at least 0"),
        ({"clip": -1.0}, ValueError, "clip=-1.0"),
        ({"kl_estimator": "k4"}, ValueError, "kl_estimator='k4' is not known"),
    ],
)
def test_wrong_arguments_are_python_errors(change: dict, error: type[Exception], message: str) -> None:
    case = joined_case([5, 2], 4, 2)
    with pytest.raises(error, match=message):
        token_objective(**{**case, **OPTIONS, **change})
