"""Rotary position embedding (Su et al., arXiv:2104.09864), in the form that Llama's checkpoints are stored for.

Dimension r of a head is turned together with dimension r + D/2. The angles depend on positions alone: a forward pass
makes their tables once, for queries and keys of all layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Of every position, float32: one tensor, as recomputation takes no others.
Tables = Tensor


def rotary_tables(frequency_R: Tensor, positions: int) -> Tables:
    """cos and sin of positions 0 to `positions` - 1, [2, positions, D/2]. frequency_R: float32 [D/2], radians each."""
    position_P = torch.arange(positions, dtype=torch.float32, device=frequency_R.device)
    angle_PR = torch.outer(position_P, frequency_R)
    return torch.stack([angle_PR.cos(), angle_PR.sin()])


def turning_tables(frequency_R: Tensor, positions: int) -> Tables:
    """Those of `rotate`, which are as wide as a head: cos twice, and -sin and sin, float32 [2, positions, 1, 1, D]."""
    cos_PR, sin_PR = rotary_tables(frequency_R, positions)
    return torch.stack([torch.cat([cos_PR, cos_PR], dim=1), torch.cat([-sin_PR, sin_PR], dim=1)])[:, :, None, None]


def halves(tables: Tables) -> tuple[Tensor, Tensor]:
    """What `rotary_tables` has, [P, D/2] each, of `turning_tables`."""
    half = tables.shape[-1] // 2
    return tables[0, :, 0, 0, :half], tables[1, :, 0, 0, half:]


def rotate(x_LBHD: Tensor, tables: Tables) -> Tensor:
    """Queries or keys [L, B, heads, D], L positions from the first on, turned by the angles of their positions (tables:
    `turning_tables`): a new tensor of the same dtype. Arithmetic is float32 at least, and rounded once."""
    if not (x_LBHD.requires_grad and torch.is_grad_enabled()):
        return _turn(x_LBHD, *tables)
    return _Rotation.apply(x_LBHD, *tables)  # type: ignore[no-any-return,no-untyped-call]


class _Rotation(torch.autograd.Function):
    """Autograd would keep and pass over four tensors as large as x; the gradient is the turn back, and needs none."""

    @staticmethod
    def forward(ctx: Any, x_LBHD: Tensor, cos_P11D: Tensor, sin_P11D: Tensor) -> Tensor:
        ctx.save_for_backward(cos_P11D, sin_P11D)
        return _turn(x_LBHD, cos_P11D, sin_P11D)

    @staticmethod
    def backward(ctx: Any, gradient_LBHD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos_P11D, sin_P11D = ctx.saved_tensors
        return _turn(gradient_LBHD, cos_P11D, -sin_P11D), None, None


def _turn(x_LBHD: Tensor, cos_P11D: Tensor, sin_P11D: Tensor) -> Tensor:
    precise = x_LBHD.float() if x_LBHD.dtype in (torch.bfloat16, torch.float16) else x_LBHD
    cos, sin = (table[: len(x_LBHD)].to(precise.dtype) for table in (cos_P11D, sin_P11D))
    other_half = precise.roll(precise.shape[-1] // 2, -1)
    return torch.mul(precise, cos).addcmul_(other_half, sin).to(x_LBHD.dtype)
