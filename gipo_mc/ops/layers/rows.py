"""What stands between the products of matrices in a layer, as training, scoring and generation need it on the CPU:
RMSNorm together with the sum before it, and the gated SiLU.

Float32 on the CPU; anything else is computed by the eager definitions in `gipo_mc.ops.layers.reference`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gipo_mc.ops import native
from gipo_mc.ops.layers import reference

NORM_CHUNK = 64  # kNormChunk of csrc/layer_rows.h: rows whose shares of the weight's gradient are added up first


def norm_of_sum(x: Tensor, other: Tensor | None, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(x + other, weight * (x + other) / sqrt(mean((x + other)^2) + epsilon)) over the last dimension, differentiable
    once; without `other` the first is x itself. Zhang and Sennrich 2019 (arXiv:1910.07467).

    x, other: [..., H]; weight_H: [H]; all of one dtype. Whoever goes on with both results has the gradients of both
    added up in the pass that computes them. A row depends on itself alone; the weight's gradient is summed in the order
    of the rows, whatever the number of threads.
    Raises ValueError where the shapes do not fit each other.
    """
    if x.shape[-1:] != weight_H.shape or (other is not None and other.shape != x.shape):
        raise ValueError(
            f"norm_of_sum: x is {list(x.shape)}, other {list(x.shape if other is None else other.shape)} and weight_H "
            f"{list(weight_H.shape)}; give [..., H] twice, and [H]."
        )
    if not native.fused(x, weight_H, x if other is None else other):
        return reference.norm_of_sum(x, other, weight_H, epsilon)
    weight_H = weight_H.contiguous()
    if torch.is_grad_enabled() and (
        x.requires_grad or weight_H.requires_grad or (other is not None and other.requires_grad)
    ):
        return _NormOfSum.apply(x, other, weight_H, epsilon)  # type: ignore[no-any-return,no-untyped-call]
    return _norm(x, other, weight_H, epsilon)[:2]


class _NormOfSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor | None, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        total, normed, inverse_N = _norm(x, other, weight_H, epsilon)
        ctx.save_for_backward(total, weight_H, inverse_N)
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    @native.differentiable_once("norm_of_sum")
    def backward(ctx: Any, of_total: Tensor | None, of_normed: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight_H, inverse_N = ctx.saved_tensors
        summed = ctx.needs_input_grad[1]
        if of_normed is None:
            return of_total, of_total if summed else None, None, None
        total, of_normed = total.contiguous(), of_normed.contiguous()
        of_total = None if of_total is None else of_total.contiguous()
        rows, columns = len(inverse_N), len(weight_H)
        of_x, of_weight_H = torch.empty_like(total), torch.empty_like(weight_H)
        shares = total.new_empty((-(-rows // NORM_CHUNK), columns))
        native.call(
            "norm_rows_gradient",
            total.device,
            *(total.data_ptr(), rows, columns, weight_H.data_ptr()),
            *map(native.address, (of_normed, of_total, inverse_N, of_x, shares, of_weight_H)),
        )
        return of_x, of_x if summed else None, of_weight_H, None


def _norm(x: Tensor, other: Tensor | None, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """The sum (x itself without `other`), the normed rows, and 1 / root mean square of each, [N]."""
    rows, columns = x.numel() // max(len(weight_H), 1), len(weight_H)
    from_x, from_other = x.contiguous(), None if other is None else other.contiguous()
    total = x if other is None else torch.empty_like(from_x)
    normed, inverse_N = torch.empty_like(from_x), x.new_empty(rows)
    native.call(
        "norm_rows",
        x.device,
        *(from_x.data_ptr(), native.address(from_other), rows, columns, weight_H.data_ptr(), epsilon),
        *(0 if other is None else total.data_ptr(), normed.data_ptr(), inverse_N.data_ptr()),
    )
    return total, normed, inverse_N


def gated_silu(both: Tensor) -> Tensor:
    """silu(gate) * up of [..., gate and up], [..., F], differentiable once; silu(x) = x / (1 + e^-x)."""
    if both.shape[-1] % 2:
        raise ValueError(f"gated_silu: gate and up are halves of the last dimension, and {both.shape[-1]} is odd.")
    if not native.fused(both):
        return reference.gated_silu(both)
    if both.requires_grad and torch.is_grad_enabled():
        return _GatedSilu.apply(both)  # type: ignore[no-any-return,no-untyped-call]
    return _gated(both.contiguous())


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        both = both.contiguous()
        ctx.save_for_backward(both)
        return _gated(both)

    @staticmethod
    @native.differentiable_once("gated_silu")
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor]:
        (both,) = ctx.saved_tensors
        of_both, of_out = torch.empty_like(both), of_out.contiguous()
        rows, columns = _halves(both)
        addresses = (of_out.data_ptr(), of_both.data_ptr())
        native.call("gated_silu_gradient", both.device, both.data_ptr(), rows, columns, *addresses)
        return (of_both,)


def _gated(both: Tensor) -> Tensor:
    rows, columns = _halves(both)
    out = both.new_empty((*both.shape[:-1], columns))
    native.call("gated_silu", both.device, both.data_ptr(), rows, columns, out.data_ptr())
    return out


def _halves(both: Tensor) -> tuple[int, int]:
    """Rows, and columns of a half."""
    columns = both.shape[-1] // 2
    return both.numel() // max(2 * columns, 1), columns
