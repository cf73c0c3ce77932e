"""What the public functions over tensors refuse: each wrong argument is an error that names the function, the argument,
what was found and what is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from gipo_mc import group_objective, group_variance, kl_weights
from gipo_mc.algorithms import kl
from gipo_mc.config import AlgorithmConfig
from gipo_mc.ops import checks, shape_and_gae, token_objective
from tests.ops.cases import objective_case

PROBS = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])
LOGITS = torch.tensor([[0.5, -1.0], [2.0, 0.5], [0.0, 0.0], [1.0, 0.1]])
KL: dict[str, Any] = {"kl_coef": 0.1, "group_probs_BM": PROBS, "best_group": 1, "kind": "adaptive"}
SUMS: dict[str, Any] = {
    "mass_M": torch.tensor([3.0, 1.0]),
    "weighted_M": torch.tensor([6.0, -1.0]),
    "total": 4,
    "weights": "size",
}
OBJECTIVE: dict[str, Any] = {
    **objective_case(4, 5, 2, lengths=[5, 2, 1, 3]),
    "clip": 0.2,
    "kl_estimator": "k3",
    "signal_form": "ratio",
}

WRONG: list[tuple[str, Callable[..., Any], dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ("a word", kl_weights, KL, {"kind": "adaptiv"}, ValueError, "kind='adaptiv' is not known; give one of adap"),
    ("no word", kl_weights, KL, {"kind": None}, ValueError, "kind=None is not known"),
    ("[M, B]", kl_weights, KL, {"group_probs_BM": PROBS.t()}, ValueError, r"the transpose \(\.t\(\)\)"),
    ("logits", kl_weights, KL, {"group_probs_BM": LOGITS}, ValueError, r"\[4, 2\] has values from -1 .*softmax"),
    ("NaN", kl_weights, KL, {"group_probs_BM": PROBS * torch.nan}, ValueError, "add up to nan"),
    ("[M]", kl_weights, KL, {"group_probs_BM": PROBS[0]}, ValueError, r"shape \[2\]; give \[B, M\]"),
    ("a list", kl_weights, KL, {"group_probs_BM": PROBS.tolist()}, TypeError, "must be a tensor, not list"),
    ("labels", kl_weights, KL, {"group_probs_BM": torch.ones(4).long()}, TypeError, r"one_hot\(labels, M\)\.float"),
    ("negative", kl_weights, KL, {"kl_coef": -0.1}, ValueError, "kl_coef=-0.1 must be a finite number of at"),
    ("not a number", kl_weights, KL, {"kl_coef": float("nan")}, ValueError, "kl_coef=nan must be a finite"),
    ("text", kl_weights, KL, {"kl_coef": "0.1"}, TypeError, "kl_coef='0.1' must be one number"),
    ("a float", kl_weights, KL, {"best_group": 1.0}, TypeError, "best_group=1.0 must be an integer, not a float"),
    ("beyond", kl_weights, KL, {"best_group": 2, "kind": "fixed"}, ValueError, "best_group=2 is not one of the 2"),
    ("before", kl_weights, KL, {"best_group": -1}, ValueError, "give 0 to 1, or None"),
    ("a word", group_variance, SUMS, {"weights": "sizes"}, ValueError, "weights='sizes' is not known"),
    ("[B, M]", group_variance, SUMS, {"mass_M": PROBS}, ValueError, r"shape \[4, 2\]; give \[M\].*\.sum\(0\)"),
    ("other M", group_variance, SUMS, {"weighted_M": torch.ones(3)}, ValueError, r"has shape \[3\], but \[2\]"),
    ("other dtype", group_variance, SUMS, {"weighted_M": torch.ones(2).double()}, TypeError, "weighted_M torch.float"),
    ("half", group_variance, SUMS, {"mass_M": torch.ones(2).bfloat16()}, TypeError, r"autocast .* probs\.float\(\)"),
    ("a list", group_variance, SUMS, {"weighted_M": [1.0, 2.0]}, TypeError, "weighted_M must be a tensor, not l"),
    ("no total", group_variance, SUMS, {"total": None}, TypeError, "total=None must be one number"),
    ("totals", group_variance, SUMS, {"total": torch.ones(2)}, ValueError, r"total has shape \[2\]; give one"),
    ("of a part", group_variance, SUMS, {"total": 2}, ValueError, "adds up to 4 sequences, but total=2; .* all r"),
    ("[M, B]", group_objective, OBJECTIVE, {"group_probs_BM": PROBS.t()}, ValueError, r"B=4 sequences; .*\.t\(\)"),
    ("logits", group_objective, OBJECTIVE, {"group_probs_BM": LOGITS}, ValueError, r"take \.softmax\(dim=1\)"),
    ("[B]", group_objective, OBJECTIVE, {"group_probs_BM": PROBS[:, 0]}, ValueError, r"give \[B, M\], a row"),
    ("a list", group_objective, OBJECTIVE, {"advantage_BT": [[0.0]]}, TypeError, "advantage_BT must be a tensor"),
    ("a pair", group_objective, OBJECTIVE, {"clip": (0.2, 0.28)}, TypeError, r"clip=\(0.2, 0.28\) must be one"),
    ("negative", group_objective, OBJECTIVE, {"kl_weight_B": -torch.ones(4)}, ValueError, "kl_weight_B has values"),
    ("none", group_objective, OBJECTIVE, {"reference_logp_BT": None}, TypeError, "Without a reference model pass "),
    ("none", group_objective, OBJECTIVE, {"behaviour_logp_BT": None}, TypeError, "In the first step after sampling p"),
    ("none", group_objective, OBJECTIVE, {"kl_weight_B": None}, TypeError, "not None. Without a KL penalty pass z"),
    ("none", group_objective, OBJECTIVE, {"group_probs_BM": None}, TypeError, "not None. Without groups pass torch"),
    ("labels", group_objective, OBJECTIVE, {"group_probs_BM": torch.ones(4).long()}, TypeError, r"one_hot\(labels, M"),
    ("[B]", group_objective, OBJECTIVE, {"advantage_BT": torch.ones(4)}, ValueError, r"view\(-1, 1\)\.expand\(-1, T"),
    ("[B, 1]", group_objective, OBJECTIVE, {"advantage_BT": torch.ones(4, 1)}, ValueError, r"\.expand\(-1, T\)"),
    ("a mask", group_objective, OBJECTIVE, {"length_B": torch.ones(4, 5) > 0}, TypeError, r"bool.*pass mask\.sum\(1\)"),
    ("a mask", group_objective, OBJECTIVE, {"length_B": torch.ones(4, 5).long()}, TypeError, r"\[4, 5\]; .*mask\.sum"),
    ("wide", group_objective, OBJECTIVE, {"advantage_BT": torch.ones(4, 5).double()}, TypeError, ", that of logp_BT"),
    ("half", group_objective, OBJECTIVE, {"group_probs_BM": PROBS.bfloat16()}, TypeError, "float64 beside float64"),
    ("a word", group_objective, OBJECTIVE, {"kl_estimator": "kl"}, ValueError, "kl_estimator='kl' is not known"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "right", "change", "error", "message"),
    [pytest.param(*case, id=f"{case[0].__name__}, {what}") for what, *case in WRONG],
)
def test_wrong_arguments_are_named(
    function: Callable[..., Any], right: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    function(**right)
    with pytest.raises(error, match=rf"^{function.__name__}: .*{message}"):
        function(**{**right, **change})


def test_what_is_rounded_or_comes_in_another_coat_is_taken() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        rounded = torch.randn(64, 16).to(dtype).log_softmax(1).exp()
        assert kl_weights(0.1, rounded, 3, "adaptive").dtype == torch.float32
        group_objective(
            **{**OBJECTIVE, "group_probs_BM": rounded[:4].float(), "kl_weight_B": torch.zeros(4)},
        )
    best = SUMS["weighted_M"].argmax()
    assert torch.equal(kl_weights(torch.tensor(0.5), PROBS, best, "adaptive"), 0.5 * PROBS[:, 0])
    group_variance(SUMS["mass_M"] * 1.004, SUMS["weighted_M"], torch.tensor(4), weights="size")
    group_variance(SUMS["mass_M"], SUMS["weighted_M"], 100, weights="population")


@pytest.mark.parametrize(
    ("function", "parameter", "words"),
    [
        (kl_weights, "kind", kl._KINDS),
        (group_variance, "weights", ("size", "population")),
        (group_objective, "kl_estimator", checks.ESTIMATORS),
        (group_objective, "signal_form", checks.SIGNAL_FORMS),
        (token_objective, "kl_estimator", checks.ESTIMATORS),
        (token_objective, "signal_form", checks.SIGNAL_FORMS),
        (shape_and_gae, "kl_estimator", checks.ESTIMATORS),
    ],
)
def test_type_checkers_are_told_the_words(function: Callable[..., Any], parameter: str, words: tuple[str, ...]) -> None:
    assert get_args(get_type_hints(function)[parameter]) == words


def test_the_options_words_are_the_ops_own_or_named_in_its_error() -> None:
    """Those of algorithm.kl_penalty are those of `kind`; signal_form and signal_tokens alone have others."""
    options = get_type_hints(AlgorithmConfig)
    for option, words in (("kl_estimator", checks.ESTIMATORS), ("kl_penalty", kl._KINDS)):
        assert set(get_args(options[option])) == set(words), option
    with pytest.raises(ValueError, match="not known") as caught:
        group_objective(**{**OBJECTIVE, "signal_form": "other"})
    for option in ("signal_form", "signal_tokens"):
        assert all(word in str(caught.value) for word in get_args(options[option])), option


def _loss_of_a_gradient(reference: bool, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setenv("GIPO_MC_OPS", "reference" if reference else "native")
    scale = torch.tensor(1.0, requires_grad=True)
    arguments = {**OBJECTIVE, "logp_BT": torch.nan_to_num(OBJECTIVE["logp_BT"]) * scale.square()}
    surrogate = group_objective(**arguments).surrogate_B.sum()
    (gradient,) = torch.autograd.grad(surrogate, scale, create_graph=True)
    return gradient


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.filterwarnings("ignore:GIPO_MC_OPS=reference")
def test_second_derivatives_are_refused(reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither taken for zero nor computed in one of the two alone; the first derivative is as it is without them."""
    gradient = _loss_of_a_gradient(reference, monkeypatch)
    with pytest.raises(RuntimeError, match=r"^group_objective: there are no second derivatives"):
        gradient.square().backward()
