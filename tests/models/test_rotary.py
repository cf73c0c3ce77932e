"""The rotary embedding against its formula, written as transformers writes it, and its gradient against autograd's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from gipo_mc.models.rotary import rotary_tables, rotate, turning_tables

POSITIONS, HALF = 7, 4


FREQUENCIES = 10000.0 ** -(torch.arange(HALF) / HALF)


def _tables() -> Tensor:
    return turning_tables(FREQUENCIES, POSITIONS)


def _plain(x_LBHD: Tensor) -> Tensor:
    cos, sin = (
        torch.cat([table, table], dim=-1).to(x_LBHD.dtype)[None] for table in rotary_tables(FREQUENCIES, POSITIONS)
    )
    x_BHLD = x_LBHD.permute(1, 2, 0, 3)
    return apply_rotary_pos_emb(x_BHLD, x_BHLD, cos, sin)[0].permute(2, 0, 1, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients(dtype: torch.dtype) -> None:
    """Of a slice, as queries and keys are slices of the projection."""
    whole = torch.randn(POSITIONS, 2, 3, 3 * HALF, dtype=dtype, generator=torch.Generator().manual_seed(1))
    found, expected = whole.clone().requires_grad_(), whole.clone().requires_grad_()
    turned, plain = rotate(found[..., : 2 * HALF], _tables()), _plain(expected[..., : 2 * HALF])
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    assert torch.allclose(turned, plain, rtol=0, atol=tolerance) and turned.is_contiguous()
    weight = torch.randn(turned.shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    (turned * weight).sum().backward()
    (plain * weight).sum().backward()
    assert found.grad is not None and expected.grad is not None
    assert torch.allclose(found.grad, expected.grad, rtol=0, atol=tolerance)


def test_bfloat16_is_rounded_once() -> None:
    x = torch.randn(POSITIONS, 2, 3, 2 * HALF, generator=torch.Generator().manual_seed(3)).bfloat16()
    exact = _plain(x.float())
    assert ((rotate(x, _tables()).float() - exact).abs() <= 1.001 * 2**-8 * exact.abs()).all()


def test_sequences_may_be_shorter_than_the_tables() -> None:
    x = torch.randn(3, 1, 1, 2 * HALF)
    assert torch.equal(rotate(x, _tables()), rotate(torch.cat([x] * 3)[:POSITIONS], _tables())[:3])
