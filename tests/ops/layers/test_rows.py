"""RMSNorm of a sum and the gated SiLU: against float64, and what a row may depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gipo_mc.ops import gated_silu, native, norm_of_sum
from gipo_mc.ops.layers import reference
from gipo_mc.ops.layers.rows import NORM_CHUNK
from tests.ops.cases import close

EPSILON = 1e-5
#: Rows and columns: one of each, sizes that are no multiple of sixteen, more than one chunk of rows.
SIZES = ((1, 1), (3, 7), (5, 24), (NORM_CHUNK, 64), (2 * NORM_CHUNK + 9, 100))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(
    x: Tensor, other: Tensor | None, weight: Tensor, ups: list[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """Both results, and the gradients of all that was given; `ups`: of the results, None for one that is not used."""
    leaves = [y.detach().clone().requires_grad_() for y in (x, other, weight) if y is not None]
    found = norm_of_sum(leaves[0], None if other is None else leaves[1], leaves[-1], EPSILON)
    used = [(y, up) for y, up in zip(found, ups, strict=True) if up is not None]
    gradients = torch.autograd.grad([y for y, _ in used], leaves, [up for _, up in used], allow_unused=True)
    return [y.detach() for y in found], [torch.zeros(1) if g is None else g for g in gradients]


@pytest.mark.parametrize("used", ["both", "normed", "sum"])
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_norm_equals_float64(rows: int, columns: int, summed: bool, used: str) -> None:
    x, weight = 2 * normal(rows, columns, seed=1), normal(columns, seed=2)
    other = normal(rows, columns, seed=3) if summed else None
    ups = [normal(rows, columns, seed=4), normal(rows, columns, seed=5)]
    given = [None if used == "normed" else ups[0], None if used == "sum" else ups[1]]
    wide = [None if y is None else y.double() for y in (other, *given)]
    exact = norm(x.double(), wide[0], weight.double(), wide[1:])
    found = norm(x, other, weight, given)
    for got, expected in zip([*found[0], *found[1]], [*exact[0], *exact[1]], strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-6 * max(scale, 1.0))
    if other is None:
        assert torch.equal(found[0][0], x)


def test_a_normed_row_depends_on_itself_alone_and_the_weight_on_no_thread() -> None:
    """The same bits alone and among others, on any number of threads."""
    rows, columns = 9 * NORM_CHUNK + 5, 200
    x, other, weight = normal(rows, columns, seed=1), normal(rows, columns, seed=2), normal(columns, seed=3)
    ups: list[Tensor | None] = [normal(rows, columns, seed=4), normal(rows, columns, seed=5)]
    whole = norm(x, other, weight, ups)
    for n in (0, 70, rows - 1):
        one = slice(n, n + 1)
        alone = norm(x[one], other[one], weight, [None if up is None else up[one] for up in ups])
        pairs = zip([*alone[0], *alone[1][:2]], [*whole[0], *whole[1][:2]], strict=True)
        assert all(torch.equal(got, among[one]) for got, among in pairs)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        again = norm(x, other, weight, ups)
        assert all(torch.equal(a, b) for a, b in zip([*again[0], *again[1]], [*whole[0], *whole[1]], strict=True))
    torch.set_num_threads(1)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_gated_silu_equals_float64(rows: int, columns: int) -> None:
    leaf = (4 * normal(rows, 2 * columns, seed=1)).requires_grad_()
    upstream = normal(rows, columns, seed=2)
    out = gated_silu(leaf)
    out.backward(upstream)
    exact = leaf.detach().double().requires_grad_()
    expected = reference.gated_silu(exact)
    expected.backward(upstream.double())
    assert leaf.grad is not None and exact.grad is not None
    close(out, expected)
    close(leaf.grad, exact.grad)
    assert torch.equal(gated_silu(leaf.detach()), out)


def test_extreme_gates() -> None:
    """Far from 0 the gate is closed or wide open, without NaN; its slope is 0 or 1."""
    both = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0, 3.0, 3.0, 3.0, 3.0, 3.0]], requires_grad=True)
    out = gated_silu(both)
    out.sum().backward()
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0, 0.0, 270.0, 600.0]]))
    assert both.grad is not None
    torch.testing.assert_close(both.grad[0, :5], torch.tensor([0.0, 0.0, 1.5, 3.0, 3.0]))


def test_threads_and_neighbours_change_no_bit_of_a_gated_row() -> None:
    both = normal(700, 2 * 90, seed=1).requires_grad_()
    whole = gated_silu(both)
    (gradient,) = torch.autograd.grad(whole.sum(), both)
    assert torch.equal(gated_silu(both[5:6]), whole[5:6])
    torch.set_num_threads(3)
    again = gated_silu(both)
    assert torch.equal(again, whole) and torch.equal(torch.autograd.grad(again.sum(), both)[0], gradient)
    torch.set_num_threads(1)


def test_any_leading_shape_and_stride() -> None:
    x, other, weight = (
        normal(4, 3, 2, 16, seed=1)[..., 0, :],
        normal(3, 4, 16, seed=2).transpose(0, 1),
        normal(16, seed=3),
    )
    assert not x.is_contiguous() and not other.is_contiguous()
    for got, expected in zip(
        norm_of_sum(x, other, weight, EPSILON),
        norm_of_sum(x.contiguous(), other.contiguous(), weight, EPSILON),
        strict=True,
    ):
        assert got.shape == (4, 3, 16) and torch.equal(got, expected)
    wide = torch.stack([weight, weight], dim=1)[:, 0]
    assert torch.equal(norm_of_sum(x, None, wide, EPSILON)[1], norm_of_sum(x, None, weight, EPSILON)[1])
    both = normal(3, 4, 10, seed=4).transpose(0, 1)
    assert torch.equal(gated_silu(both), gated_silu(both.contiguous())) and gated_silu(both).shape == (4, 3, 5)
    assert norm_of_sum(x[:0], other[:0], weight, EPSILON)[1].shape == (0, 3, 16)
    assert gated_silu(both[:0]).shape == (0, 3, 5)


def test_a_frozen_weight_or_summand_has_no_gradient() -> None:
    x, weight = normal(3, 16, seed=1).requires_grad_(), normal(16, seed=2)
    total, normed = norm_of_sum(x, normal(3, 16, seed=3), weight, EPSILON)
    (total + normed).sum().backward()
    assert x.grad is not None and weight.grad is None
    with torch.no_grad():
        assert not norm_of_sum(x, None, weight, EPSILON)[1].requires_grad


def test_other_types_take_the_definition_with_any_number_of_derivatives() -> None:
    x, other, weight = (normal(*shape, seed=1).double().requires_grad_() for shape in ((3, 6), (3, 6), (6,)))
    assert torch.autograd.gradcheck(lambda *given: norm_of_sum(*given, EPSILON), (x, other, weight))
    assert torch.autograd.gradgradcheck(gated_silu, x)
    half = normal(3, 6, seed=2).bfloat16()
    assert gated_silu(half).dtype == norm_of_sum(half, half, weight.bfloat16(), EPSILON)[1].dtype == torch.bfloat16


def test_shapes_that_do_not_fit_are_refused_in_words() -> None:
    x, weight = normal(3, 6, seed=1), normal(6, seed=2)
    with pytest.raises(ValueError, match=r"norm_of_sum: x is \[3, 6\], other \[3, 5\] and weight_H \[6\]"):
        norm_of_sum(x, x[:, :5], weight, EPSILON)
    with pytest.raises(ValueError, match=r"weight_H \[5\]; give"):
        norm_of_sum(x, None, weight[:5], EPSILON)
    with pytest.raises(ValueError, match="gated_silu: gate and up are halves of the last dimension, and 5 is odd"):
        gated_silu(x[:, :5])


@pytest.mark.filterwarnings("ignore:GIPO_MC_OPS=reference")
def test_the_references_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal(3, 16, seed=1), normal(16, seed=2)
    expected = norm_of_sum(x, x, weight, EPSILON)[1], gated_silu(x)
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    monkeypatch.setattr(native, "call", lambda *_: pytest.fail("a kernel was called"))
    close(norm_of_sum(x, x, weight, EPSILON)[1], expected[0])
    close(gated_silu(x), expected[1])


@pytest.mark.parametrize("name", ["norm_of_sum", "gated_silu"])
def test_second_derivatives_are_refused_and_forward_mode_is_the_definitions(name: str) -> None:
    x = torch.randn(5, 8, requires_grad=True)

    def op(x: torch.Tensor) -> torch.Tensor:
        return norm_of_sum(x, None, torch.ones(8), 1e-5)[1] if name == "norm_of_sum" else gated_silu(x)

    refused = f"{name}: there are no second derivatives"
    (gradient,) = torch.autograd.grad(op(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=refused):
        torch.autograd.grad((gradient + x).sum(), x)
    (gradient,) = torch.autograd.grad(op(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=refused):
        gradient.sum().backward()
    with torch.no_grad():
        _, tangent = torch.func.jvp(op, (x,), (torch.ones_like(x),))
        assert tangent.abs().sum() > 0
        torch.testing.assert_close(torch.func.vmap(op)(x), op(x))
