"""Causal attention from the QKV projection on: against float64, and what a row may depend on."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gipo_mc.ops import native
from gipo_mc.ops.layers import reference
from gipo_mc.ops.layers.causal_attention import LONGEST, causal_attention, has_kernel
from tests.ops.cases import close


class Case(NamedTuple):
    qkv_LBC: Tensor
    cos_PR: Tensor
    sin_PR: Tensor
    groups: int
    upstream_LBC: Tensor

    def run(self, rows: slice = slice(None), positions: int | None = None) -> tuple[Tensor, Tensor]:
        """What is seen, and the gradient of the projections, of some sequences and their first positions."""
        leaf = self.qkv_LBC[:positions, rows].detach().requires_grad_()
        width = 2 * self.cos_PR.shape[1]
        seen = causal_attention(leaf, self.cos_PR, self.sin_PR, self.groups, width**-0.5)
        seen.backward(self.upstream_LBC[:positions, rows])
        assert leaf.grad is not None
        return seen.detach(), leaf.grad

    def exact(self) -> tuple[Tensor, Tensor]:
        """In float64, of the same numbers."""
        leaf = self.qkv_LBC.double().requires_grad_()
        tables = (self.cos_PR.double(), self.sin_PR.double())
        seen = reference.causal_attention(leaf, *tables, self.groups, (2 * tables[0].shape[1]) ** -0.5)
        (gradient,) = torch.autograd.grad(seen, leaf, self.upstream_LBC.double())
        return seen.detach(), gradient


def case(length: int, batch: int, groups: int, queries: int, width: int) -> Case:
    generator = torch.Generator().manual_seed(length + width)
    qkv = 1.5 * torch.randn(length, batch, groups * (queries + 2) * width, generator=generator)
    # Tables of more positions than are asked for, whose rows do not touch.
    angle = torch.outer(torch.arange(length + 3.0), 10000.0 ** -torch.linspace(0, 1, width // 2))
    wide = torch.stack([angle.cos(), angle.sin()], dim=1)
    upstream = torch.randn(length, batch, groups * queries * width, generator=generator)
    return Case(qkv, wide[:, 0], wide[:, 1], groups, upstream)


@pytest.mark.parametrize("length", [1, 5, 17, 32, 70])
@pytest.mark.parametrize(("groups", "queries", "width"), [(1, 1, 2), (4, 1, 16), (2, 3, 12), (1, 4, 64), (2, 2, 80)])
def test_equals_float64(length: int, groups: int, queries: int, width: int) -> None:
    given = case(length, 3, groups, queries, width)
    for got, exact in zip(given.run(), given.exact(), strict=True):
        assert got.shape == exact.shape and got.dtype == torch.float32
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=3e-6)


def test_long_sequences_and_wide_heads() -> None:
    given = case(300, 1, 1, 2, 256)
    for got, exact in zip(given.run(), given.exact(), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_row_depends_on_its_own_sequence_and_earlier_positions_only() -> None:
    """The same bits alone and among others, with padding behind it and without, on any number of threads."""
    given = case(45, 9, 2, 3, 24)
    seen, gradient = given.run()
    for row in range(9):
        for got, whole in zip(given.run(slice(row, row + 1)), (seen, gradient), strict=True):
            assert torch.equal(got, whole[:, row : row + 1])
    assert torch.equal(given.run(positions=18)[0], seen[:18])
    padded = given._replace(upstream_LBC=given.upstream_LBC.clone())
    padded.upstream_LBC[18:] = 0  # as of padding, on which no loss looks
    assert torch.equal(padded.run()[1][:18], given.run(positions=18)[1])
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(got, whole) for got, whole in zip(given.run(), (seen, gradient), strict=True))
    torch.set_num_threads(1)


def test_large_scores_do_not_overflow_and_nan_stays_in_its_sequence() -> None:
    given = case(20, 3, 1, 2, 16)
    given.qkv_LBC[:, 0] *= 30
    seen, exact = given.run()[0], given.exact()[0]
    torch.testing.assert_close(seen.double(), exact, rtol=1e-2, atol=1e-2)  # scores of thousands, rounded
    given.qkv_LBC[3, 1, 5] = torch.nan
    broken, gradient = given.run()
    assert broken[3:, 1].isnan().any() and not broken[:3, 1].isnan().any()
    assert torch.equal(broken[:, ::2], seen[:, ::2]) and not gradient[:, ::2].isnan().any()


def test_inputs_of_any_stride() -> None:
    """Rows of one sequence after those of another are read where they lie; others are copied. The same bits."""
    given = case(19, 4, 2, 2, 16)
    given = given._replace(upstream_LBC=given.upstream_LBC[:, :1].expand(-1, 4, -1))
    plain = given._replace(upstream_LBC=given.upstream_LBC.contiguous()).run()
    turned = given.qkv_LBC.transpose(0, 1).contiguous().transpose(0, 1)
    sparse = torch.stack([given.qkv_LBC, given.qkv_LBC], dim=-1)[..., 0]
    for qkv_LBC in (turned, sparse):
        assert not qkv_LBC.is_contiguous()
        found = given._replace(qkv_LBC=qkv_LBC).run()
        assert all(torch.equal(got, expected) for got, expected in zip(found, plain, strict=True))
        assert (qkv_LBC is turned) == found[0].transpose(0, 1).is_contiguous()
    for sin_PR in (given.sin_PR.contiguous(), given.sin_PR.t().contiguous().t(), given.sin_PR.double()):
        found = given._replace(sin_PR=sin_PR).run()
        assert all(torch.equal(got, expected) for got, expected in zip(found, plain, strict=True))


def test_where_there_is_no_kernel_the_definition_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(6, 2, 1, 2, 8)
    seen, gradient = given.run()
    monkeypatch.setattr(native, "call", lambda *_: pytest.fail("a kernel was called"))
    monkeypatch.setattr(importlib.import_module("gipo_mc.ops.layers.causal_attention"), "LONGEST", 5)
    for got, expected in zip(given.run(), (seen, gradient), strict=True):
        close(got, expected)
    monkeypatch.undo()
    double = given.qkv_LBC.double().requires_grad_()
    tables = (given.cos_PR[:6].double(), given.sin_PR[:6].double())

    def run(leaf: Tensor) -> Tensor:
        return causal_attention(leaf, *tables, 1, 0.3)

    assert torch.autograd.gradcheck(run, double)
    assert not has_kernel(double, 6) and not has_kernel(given.qkv_LBC, LONGEST + 1)
    assert not has_kernel(given.qkv_LBC.to("meta"), 6)


@pytest.mark.parametrize("upstream", ["of the result", "constant"])
def test_a_second_derivative_is_refused(upstream: str) -> None:
    """torch alone would take the gradient for a constant where what comes from above is one."""
    given = case(4, 1, 1, 1, 8)
    leaf = given.qkv_LBC.requires_grad_()
    seen = causal_attention(leaf, given.cos_PR, given.sin_PR, 1, 0.3)
    loss = seen.sum() if upstream == "constant" else seen.square().sum()
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="causal_attention: there are no second derivatives"):
        gradient.sum().backward()


def test_nothing_to_attend_to() -> None:
    given = case(3, 2, 1, 1, 8)
    for empty in (given.qkv_LBC[:0], given.qkv_LBC[:, :0]):
        seen = causal_attention(empty, given.cos_PR, given.sin_PR, 1, 0.3)
        assert seen.shape == (*empty.shape[:2], 8)


def test_shapes_that_do_not_fit_are_refused_in_words() -> None:
    given = case(5, 2, 2, 1, 8)
    for change, message in (
        ({"qkv_LBC": given.qkv_LBC[..., 1:]}, r"give \[L, B, 2 \* \(H / 2 \+ 2\) \* 8\]"),
        ({"qkv_LBC": given.qkv_LBC[..., :32]}, r"give \[L, B, 2 \*"),
        ({"cos_PR": given.cos_PR.to("meta")}, "cosines .* on meta"),
        ({"groups": -1}, "at least one key head"),
        ({"sin_PR": given.sin_PR[1:]}, "as many positions"),
        ({"cos_PR": given.cos_PR[:4], "sin_PR": given.sin_PR[:4]}, "at least the 5 of qkv_LBC"),
    ):
        with pytest.raises(ValueError, match=message):
            given._replace(**change).run()


@pytest.mark.filterwarnings("ignore:GIPO_MC_OPS=reference")
def test_the_reference_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(9, 2, 2, 2, 16)
    expected = given.run()
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    monkeypatch.setattr(native, "call", lambda *_: pytest.fail("a kernel was called"))
    for got, kernel in zip(given.run(), expected, strict=True):
        # Both are float32, and each may be as far from the exact values as above.
        torch.testing.assert_close(got, kernel, rtol=2e-5, atol=6e-6)
