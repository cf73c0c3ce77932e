"""Rotary position embedding (Su et al., arXiv:2104.09864), in the form that Llama's checkpoints are stored for.

Dimension r of a head is turned together with dimension r + D/2. The angles depend on positions alone: a forward pass
makes their tables once, for queries and keys of all layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: cos and sin of every position, float32 [2, positions, D/2]: one tensor, as recomputation takes no others.
Tables = Tensor


def rotary_tables(frequency_R: Tensor, positions: int) -> Tables:
    """Those of positions 0 to `positions` - 1. frequency_R: float32 [D/2], radians a position."""
    position_P = torch.arange(positions, dtype=torch.float32, device=frequency_R.device)
    angle_PR = torch.outer(position_P, frequency_R)
    return torch.stack([angle_PR.cos(), angle_PR.sin()])


def rotate(x_LBHD: Tensor, tables: Tables) -> Tensor:
    """Queries or keys [L, B, heads, D], L positions from the first on, turned by the angles of their positions: a new
    tensor of the same dtype. Arithmetic is float32 at least, and rounded once."""
    return _Rotation.apply(x_LBHD, *tables)  # type: ignore[no-any-return,no-untyped-call]


class _Rotation(torch.autograd.Function):
    """Autograd would keep and pass over eight tensors as large as x; the gradient is the turn back, and needs none."""

    @staticmethod
    def forward(ctx: Any, x_LBHD: Tensor, cos_PR: Tensor, sin_PR: Tensor) -> Tensor:
        ctx.save_for_backward(cos_PR, sin_PR)
        return _turn(x_LBHD, cos_PR, sin_PR)

    @staticmethod
    def backward(ctx: Any, gradient_LBHD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos_PR, sin_PR = ctx.saved_tensors
        return _turn(gradient_LBHD, cos_PR, -sin_PR), None, None


def _turn(x_LBHD: Tensor, cos_PR: Tensor, sin_PR: Tensor) -> Tensor:
    precise = x_LBHD.float() if x_LBHD.dtype in (torch.bfloat16, torch.float16) else x_LBHD
    cos, sin = (table_PR[: len(x_LBHD), None, None].to(precise.dtype) for table_PR in (cos_PR, sin_PR))
    turned = torch.empty_like(precise, memory_format=torch.contiguous_format)
    (first, second), (to_first, to_second) = precise.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return turned.to(x_LBHD.dtype)
