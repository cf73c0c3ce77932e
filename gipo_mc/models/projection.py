"""Hidden states onto the vocabulary: logits in float32 where they are asked for, and log-probs part by part.

Whoever trains needs each weight's gradient to be complete at one moment of the backward pass, because that is when it
is summed over the data-parallel ranks (`parallel.overlap`). A head whose logits are made in parts by checkpoints is
ready once a part; here one autograd function goes through all parts, and hands autograd one gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gipo_mc.ops import native

#: Rows of the weight that are widened at a time, where no kernel multiplies bfloat16 into float32.
_BLOCK = 8192
#: (logits [n, V_local], *columns [n]) -> tensors [n], differentiable with respect to the logits.
OfLogits = Callable[..., tuple[Tensor, ...]]


def project(state_NH: Tensor, weight_VH: Tensor, *, float32: bool) -> Tensor:
    """[N, H] x [V, H] -> logits [N, V], without autograd, in the model's dtype or in float32.

    float32: the exact products of low-precision numbers, summed and kept in float32. Of a model whose dtype is wider
    already nothing changes.
    """
    if not float32 or state_NH.dtype not in (torch.bfloat16, torch.float16):
        return state_NH.matmul(weight_VH.t())
    if state_NH.is_cuda:
        return torch.mm(state_NH, weight_VH.t(), out_dtype=torch.float32)
    wide_NH = state_NH.float()
    return torch.cat([wide_NH.matmul(block_vH.float().t()) for block_vH in weight_VH.split(_BLOCK)], dim=1)


def logits(state_NH: Tensor, weight_VH: Tensor, *, float32: bool, group: dist.ProcessGroup | None = None) -> Tensor:
    """`project` with gradients. Products with them have the model's dtype.

    group: tensor-parallel ranks that hold the other rows of the weight: the states' gradient is summed over them.
    """
    return _Logits.apply(state_NH, weight_VH, float32, group)  # type: ignore[no-any-return,no-untyped-call]


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, state_NH: Tensor, weight_VH: Tensor, float32: bool, group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.save_for_backward(state_NH, weight_VH)
        ctx.group = group
        return project(state_NH, weight_VH, float32=float32)

    @staticmethod
    @native.differentiable_once("logits")
    def backward(ctx: Any, gradient_NV: Tensor) -> tuple[Tensor | None, ...]:
        state_NH, weight_VH = ctx.saved_tensors
        gradient_NV = gradient_NV.to(weight_VH.dtype)
        of_weight = gradient_NV.t().matmul(state_NH) if ctx.needs_input_grad[1] else None
        return _summed(gradient_NV.matmul(weight_VH), ctx.group), of_weight, None, None


def in_parts(
    function: OfLogits,
    state_NH: Tensor,
    weight_VH: Tensor,
    *columns_N: Tensor,
    rows: int,
    float32: bool = False,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, ...]:
    """`function(logits_NV, *columns_N)` -> tensors [N], the logits of at most `rows` rows at a time.

    Where a gradient is wanted, the logits of all parts but the last are computed a second time in the backward pass,
    which begins with the last part. Parts differ in size by at most one row, and are the same on every tensor-parallel
    rank. float32, group: as in `logits`.

    The gradients of the weight are added to Megatron's float32 buffer (`main_grad`) part by part, as those of
    micro-batches are, but for the first part's, which autograd is given: when it reports the weight to be ready,
    everything else is in the buffer. Without such a buffer they are summed in float32.
    """
    parts = max(-(-len(state_NH) // rows), 1)
    if not torch.is_grad_enabled():
        state_NH, weight_VH = state_NH.detach(), weight_VH.detach()  # autograd functions look at the tensors alone
    return _InParts.apply(function, parts, float32, group, state_NH, weight_VH, *columns_N)  # type: ignore[no-any-return,no-untyped-call]


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: OfLogits,
        parts: int,
        float32: bool,
        group: dist.ProcessGroup | None,
        state_NH: Tensor,
        weight_VH: Tensor,
        *columns_N: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.function, ctx.parts, ctx.float32, ctx.group = function, parts, float32, group
        ctx.save_for_backward(state_NH, weight_VH, *columns_N)
        ctx.set_materialize_grads(False)
        pieces = list(_split(parts, state_NH, *columns_N))
        outputs = [function(project(part, weight_VH, float32=float32), *columns) for part, *columns in pieces[:-1]]
        if any(ctx.needs_input_grad):
            # The backward pass begins with the last part, so what that one holds can wait for it.
            ctx.last = _Part(ctx, weight_VH, *pieces[-1])
            outputs.append(tuple(output.detach() for output in ctx.last.outputs))
        else:
            outputs.append(function(project(pieces[-1][0], weight_VH, float32=float32), *pieces[-1][1:]))
        return tuple(torch.cat(columns) for columns in zip(*outputs))

    @staticmethod
    @native.differentiable_once("in_parts")
    def backward(ctx: Any, *upstream_N: Tensor | None) -> tuple[Tensor | None, ...]:
        state_NH, weight_VH, *columns_N = ctx.saved_tensors
        given = {place: gradient for place, gradient in enumerate(upstream_N) if gradient is not None}
        pieces = list(_split(ctx.parts, state_NH, *columns_N))
        upstream = list(_split(ctx.parts, *given.values()))
        of_state_NH = torch.empty_like(state_NH)
        shares = of_state_NH.tensor_split(ctx.parts)
        buffer_VH: Any = getattr(weight_VH, "main_grad", None)
        own = buffer_VH is None and ctx.needs_input_grad[5]  # nobody else has a place for the sum
        if own:
            buffer_VH = torch.zeros_like(weight_VH, dtype=torch.promote_types(weight_VH.dtype, torch.float32))
        of_weight_VH = None
        for number in reversed(range(ctx.parts)):
            part = ctx.last if number == ctx.parts - 1 else _Part(ctx, weight_VH, *pieces[number])
            ctx.last = None
            of_weight_VH = part.backward(list(given), upstream[number], shares[number])
            del part  # one part's logits at a time
            if of_weight_VH is not None and (own or number):
                buffer_VH.add_(of_weight_VH)
        of_weight_VH = buffer_VH.to(weight_VH.dtype) if own else of_weight_VH
        return None, None, None, None, _summed(of_state_NH, ctx.group), of_weight_VH, *(None,) * len(columns_N)


class _Part:
    """Some rows' outputs, with a graph of their own from states and weight to them."""

    def __init__(self, ctx: Any, weight_VH: Tensor, state_nH: Tensor, *columns_n: Tensor) -> None:
        with torch.enable_grad():
            self.state_nH = state_nH.detach().requires_grad_()
            self.weight_VH = weight_VH.detach().requires_grad_(ctx.needs_input_grad[5])
            logits_nV = logits(self.state_nH, self.weight_VH, float32=ctx.float32)
            self.outputs = ctx.function(logits_nV, *columns_n)

    def backward(self, used: list[int], upstream_n: tuple[Tensor, ...], share_nH: Tensor) -> Tensor | None:
        """Write this rank's share of the states' gradient; the weight's, where it is wanted."""
        inputs = [self.state_nH, self.weight_VH] if self.weight_VH.requires_grad else [self.state_nH]
        outputs = [self.outputs[place] for place in used]
        del self.outputs
        of_state_nH, *of_weight = torch.autograd.grad(outputs, inputs, upstream_n)
        share_nH.copy_(of_state_nH)
        return of_weight[0] if of_weight else None


def _split(parts: int, *tensors_N: Tensor) -> Any:
    return zip(*(tensor.tensor_split(parts) for tensor in tensors_N), strict=True)


def _summed(gradient_NH: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(gradient_NH, group=group)
    return gradient_NH
