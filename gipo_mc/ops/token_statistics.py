"""Op A: log-probability and entropy of every token from vocabulary-parallel logits, without a copy of them.

Forward: each rank reduces its columns to four numbers a token (maximum, sum of exponentials, sum of exponentials times
the centred logit, target logit); these are gathered over the tensor-parallel ranks and merged in rank order.
Backward: one read of the logits and one write of their gradient, no communication:

    dz_v = ( c (1[v = y] - p_v) - e p_v (ln p_v + H) ) / temperature,  c, e = gradients of log-prob and entropy

Outputs and what the backward pass needs are 16 bytes a token together: with all columns on one rank, all the memory
there is beside the logits. `gipo_mc.ops.reference` holds the eager definition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gipo_mc.ops import checks, native, reference
from gipo_mc.ops.results import TokenStatistics

_OP = "token_statistics"
PARTIAL_FIELDS = 4  # kPartialFields of csrc/token_statistics.h: maximum, sum, weighted sum, target logit
ROW_FIELDS = 2  # kRowFields there: maximum, ln sum


def _fake_partials(logits_NV: Tensor, *_: Any) -> Tensor:
    return logits_NV.new_empty((PARTIAL_FIELDS, logits_NV.shape[0]), dtype=checks.accumulator(logits_NV.dtype))


@native.op("token_partials", _fake_partials)
def token_partials(logits_NV: Tensor, targets_N: Tensor, vocab_start: int, columns: int, temperature: float) -> Tensor:
    """[4, N]: maximum (unscaled), sum e^u, sum e^u u with u = (z - maximum) / temperature, and target logit (unscaled;
    -inf where the target is not among the first `columns` columns)."""
    targets_N = targets_N.contiguous()
    partials_4N = _fake_partials(logits_NV)
    native.call(
        "token_partials",
        logits_NV.device,
        *(native.address(logits_NV), native.code(logits_NV), logits_NV.shape[0], columns, logits_NV.stride(0)),
        *(native.address(targets_N), vocab_start, temperature, native.address(partials_4N)),
    )
    return partials_4N


def _results(rows: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = checks.accumulator(like.dtype)
    return tuple(like.new_empty(shape, dtype=dtype) for shape in ((rows,), (rows,), (ROW_FIELDS, rows)))  # type: ignore[return-value]


@native.op("token_merge", lambda partials_R4N, *_: _results(partials_R4N.shape[2], partials_R4N))
def token_merge(partials_R4N: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob and entropy [N], and [2, N], maximum and ln sum, from the partials of all ranks in rank order."""
    targets_N, partials_R4N = targets_N.contiguous(), partials_R4N.contiguous()
    results = _results(targets_N.shape[0], partials_R4N)
    native.call(
        "token_merge",
        partials_R4N.device,
        *(native.address(partials_R4N), native.code(partials_R4N), partials_R4N.shape[0], targets_N.shape[0]),
        *(native.address(targets_N), temperature, *map(native.address, results)),
    )
    return results


@native.op("token_statistics", lambda logits_NV, *_: _results(logits_NV.shape[0], logits_NV))
def token_results(
    logits_NV: Tensor, targets_N: Tensor, vocab_start: int, columns: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `token_merge` gives, of the columns that are here alone: 16 bytes a token, and nothing else."""
    targets_N = targets_N.contiguous()
    results = _results(logits_NV.shape[0], logits_NV)
    native.call(
        "token_statistics",
        logits_NV.device,
        *(native.address(logits_NV), native.code(logits_NV), logits_NV.shape[0], columns, logits_NV.stride(0)),
        *(native.address(targets_N), vocab_start, temperature, *map(native.address, results)),
    )
    return results


class _GradientInputs(NamedTuple):
    """The parameters of both gradient ops. of_logp_N, of_entropy_N: gradients of the outputs, None for one that was not
    used; the others as in forward, or what it returned."""

    logits_NV: Tensor
    targets_N: Tensor
    entropy_N: Tensor
    statistics_2N: Tensor
    of_logp_N: Tensor | None
    of_entropy_N: Tensor | None
    vocab_start: int
    columns: int
    vocabulary: int
    temperature: float


def _gradient_into(out_NV: Tensor, given: _GradientInputs) -> None:
    logits_NV = given.logits_NV
    kept = [x.contiguous() for x in (given.targets_N, given.entropy_N, given.statistics_2N)]
    upstream = native.upstream(given.of_logp_N, given.of_entropy_N)
    native.call(
        "token_gradient",
        logits_NV.device,
        *(native.address(logits_NV), native.code(logits_NV), logits_NV.shape[0], given.columns, logits_NV.stride(0)),
        *(native.address(kept[0]), given.vocab_start, given.temperature, logits_NV.shape[1], given.vocabulary),
        *(*map(native.address, (*kept[1:], *upstream)), native.address(out_NV), out_NV.stride(0)),
    )


def _fake_gradient(logits_NV: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits_NV, memory_format=torch.contiguous_format)


@native.op("token_gradient", _fake_gradient, schema=native.schema(_GradientInputs, returns="Tensor"))
def token_gradient(*inputs: Any) -> Tensor:
    """Gradient of the logits [N, V_local], contiguous. inputs: the fields of _GradientInputs."""
    out_NV = _fake_gradient(*inputs)
    _gradient_into(out_NV, _GradientInputs(*inputs))
    return out_NV


_MUTATES = ("logits_NV",)


@native.op(
    "token_gradient_",
    lambda *_: None,
    mutates=_MUTATES,
    schema=native.schema(_GradientInputs, returns="()", mutates=_MUTATES),
)
def token_gradient_(*inputs: Any) -> None:
    """As `token_gradient`, written over the logits themselves."""
    given = _GradientInputs(*inputs)
    _gradient_into(given.logits_NV, given)


class _TokenStatistics(torch.autograd.Function):
    """partials_R4N: those of all ranks where the vocabulary is split over them, else None."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: Tensor,
        targets_N: Tensor,
        partials_R4N: Tensor | None,
        inplace_backward: bool,
        *numbers: Any,
    ) -> tuple[Tensor, Tensor]:
        vocab_start, columns, _, temperature = numbers
        if partials_R4N is None:
            columns_here = (vocab_start, columns, temperature)
            logp_N, entropy_N, statistics_2N = token_results(logits_NV, targets_N, *columns_here)
        else:
            logp_N, entropy_N, statistics_2N = token_merge(partials_R4N, targets_N, temperature)
        ctx.numbers, ctx.inplace = numbers, inplace_backward
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits_NV, targets_N, entropy_N, statistics_2N)
        return logp_N, entropy_N

    @staticmethod
    @native.differentiable_once("token_statistics")
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        logits_NV, *kept = ctx.saved_tensors
        arguments = (logits_NV.detach(), *kept, *upstream, *ctx.numbers)
        if ctx.inplace:
            # The mutation raises the version of the logits: a second consumer that saved them fails loudly in its
            # backward, but for one that saves through torch's saved-tensor hooks.
            token_gradient_(*arguments)
            return arguments[0], *(None,) * 7
        return token_gradient(*arguments), *(None,) * 7


def token_statistics(
    logits_NV: Tensor,
    targets_N: Tensor,
    *,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    inplace_backward: bool = False,
) -> TokenStatistics:
    """Log-probability of each target and entropy of each distribution softmax(logits / temperature).

    logits_NV: float32, bfloat16, float16 (or float64, CPU) [N, V_local]; any row stride, columns contiguous.
    targets_N: int64 [N] global ids; -100 marks an ignored row (outputs 0, gradient row 0).
    vocab_start: global id of this rank's first column; with `group` it must be rank * V_local.
    vocab_size: ids of the true vocabulary; columns at or beyond it are padding (probability 0, gradient 0). None: no
        padding.
    temperature: divides the logits, > 0.
    group: tensor-parallel process group whose ranks hold the other columns, in rank order; every rank of it calls.
    inplace_backward: the backward pass writes the gradient over the logits, which saves their size in memory. Only
        where nothing else uses the logits (which is noticed, but not under saved-tensor hooks, as those of
        non-reentrant checkpoints); needs a backward pass through them exactly once, outside torch.compile.

    Returns float32 [N] (float64 for float64 logits), differentiable with respect to `logits_NV`, once.
    Raises TypeError or ValueError for wrong dtypes, shapes, layouts, ids; on CUDA ids are not looked at: an id outside
    the vocabulary gives -inf and no gradient of its log-probability there.
    """
    checks.logits(_OP, logits_NV, targets_N, temperature)
    width = logits_NV.shape[1]
    ranks = dist.get_world_size(group) if group is not None else 1
    if group is not None and vocab_start != dist.get_rank(group) * width:
        raise ValueError(
            f"{_OP}: vocab_start={vocab_start}, but rank {dist.get_rank(group)} of {ranks} with {width} columns each "
            f"must start at {dist.get_rank(group) * width}."
        )
    vocabulary = (0 if group is not None else vocab_start) + width * ranks if vocab_size is None else vocab_size
    if vocabulary < 1 or vocab_start < 0:
        raise ValueError(f"{_OP}: vocab_size={vocabulary} and vocab_start={vocab_start}: the first must be positive.")
    checks.targets(_OP, targets_N, vocabulary)
    if inplace_backward:
        checks.overwritable(_OP, logits_NV)
    if native.use_reference():
        return reference.token_statistics(
            logits_NV,
            targets_N,
            vocab_start=vocab_start,
            vocab_size=vocab_size,
            temperature=temperature,
            group=group,
            inplace_backward=inplace_backward,
        )

    columns = min(max(vocabulary - vocab_start, 0), width)
    partials_R4N = None
    if ranks > 1:
        partials_4N = token_partials(logits_NV.detach(), targets_N, vocab_start, columns, temperature)
        partials_R4N = partials_4N.new_empty((ranks, *partials_4N.shape))
        dist.all_gather(list(partials_R4N.unbind()), partials_4N, group=group)
    numbers, inplace = (vocab_start, columns, vocabulary, temperature), inplace_backward and logits_NV.requires_grad
    return TokenStatistics(*_TokenStatistics.apply(logits_NV, targets_N, partials_R4N, inplace, *numbers))
