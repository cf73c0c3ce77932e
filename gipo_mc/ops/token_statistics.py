"""Op A: log-probability and entropy of every token from vocabulary-parallel logits, without a copy of them.

Forward: each rank reduces its columns to four numbers a token (maximum, sum of exponentials, sum of exponentials times
the centred logit, target logit); these are gathered over the tensor-parallel ranks and merged in rank order.
Backward: one read of the logits and one write of their gradient, no communication:

    dz_v = ( c (1[v = y] - p_v) - e p_v (ln p_v + H) ) / temperature,  c, e = gradients of log-prob and entropy

Numbers that pass between the two are [N]: 16 bytes a token. `gipo_mc.ops.reference` holds the eager definition.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from gipo_mc.ops import checks, native, reference
from gipo_mc.ops.results import TokenStatistics

_OP = "token_statistics"


@torch.library.custom_op("gipo_mc::token_partials", mutates_args=(), device_types=("cpu", "cuda"))
def token_partials(logits_NV: Tensor, targets_N: Tensor, vocab_start: int, columns: int, temperature: float) -> Tensor:
    """[4, N]: maximum (unscaled), sum e^u, sum e^u u with u = (z - maximum) / temperature, and target logit (unscaled;
    -inf where the target is not among the first `columns` columns)."""
    targets_N = targets_N.contiguous()
    partials_4N = logits_NV.new_empty((4, logits_NV.shape[0]), dtype=checks.accumulator(logits_NV.dtype))
    native.call(
        "token_partials",
        logits_NV.device,
        *(native.address(logits_NV), native.code(logits_NV), logits_NV.shape[0], columns, logits_NV.stride(0)),
        *(native.address(targets_N), vocab_start, temperature, native.address(partials_4N)),
    )
    return partials_4N


@token_partials.register_fake
def _(logits_NV: Tensor, targets_N: Tensor, vocab_start: int, columns: int, temperature: float) -> Tensor:
    return logits_NV.new_empty((4, logits_NV.shape[0]), dtype=checks.accumulator(logits_NV.dtype))


@torch.library.custom_op("gipo_mc::token_statistics", mutates_args=(), device_types=("cpu", "cuda"))
def token_merge(
    logits_NV: Tensor,
    targets_N: Tensor,
    partials_R4N: Tensor,
    vocab_start: int,
    columns: int,
    vocabulary: int,
    temperature: float,
    inplace_backward: bool,
) -> Tensor:
    """[4, N]: log-prob, entropy, maximum, ln sum, from the partials of all ranks in rank order. The logits are not read
    here; they are an input because the first two rows are differentiable with respect to them. One output rather than
    four: on a GPU each copy of a row is a launch."""
    targets_N, partials_R4N = targets_N.contiguous(), partials_R4N.contiguous()
    merged_4N = torch.empty_like(partials_R4N[0])
    native.call(
        "token_merge",
        logits_NV.device,
        *(native.address(partials_R4N), native.code(partials_R4N), partials_R4N.shape[0], targets_N.shape[0]),
        *(native.address(targets_N), temperature, native.address(merged_4N)),
    )
    return merged_4N


@token_merge.register_fake
def _(
    logits_NV: Tensor,
    targets_N: Tensor,
    partials_R4N: Tensor,
    vocab_start: int,
    columns: int,
    vocabulary: int,
    temperature: float,
    inplace_backward: bool,
) -> Tensor:
    return partials_R4N.new_empty(partials_R4N.shape[1:])


def _gradient_into(
    out_NV: Tensor,
    logits_NV: Tensor,
    targets_N: Tensor,
    statistics_3N: Tensor,
    gradients_2N: Tensor,
    vocab_start: int,
    columns: int,
    vocabulary: int,
    temperature: float,
) -> None:
    targets_N, statistics_3N, gradients_2N = (x.contiguous() for x in (targets_N, statistics_3N, gradients_2N))
    native.call(
        "token_gradient",
        logits_NV.device,
        *(native.address(logits_NV), native.code(logits_NV), logits_NV.shape[0], columns, logits_NV.stride(0)),
        *(native.address(targets_N), vocab_start, temperature, logits_NV.shape[1], vocabulary),
        *(native.address(statistics_3N), native.address(gradients_2N), native.address(out_NV), out_NV.stride(0)),
    )


@torch.library.custom_op("gipo_mc::token_gradient", mutates_args=(), device_types=("cpu", "cuda"))
def token_gradient(
    logits_NV: Tensor,
    targets_N: Tensor,
    statistics_3N: Tensor,
    gradients_2N: Tensor,
    vocab_start: int,
    columns: int,
    vocabulary: int,
    temperature: float,
) -> Tensor:
    """Gradient of the logits [N, V_local], contiguous, from (entropy, maximum, ln sum) and (c, e)."""
    out_NV = torch.empty_like(logits_NV, memory_format=torch.contiguous_format)
    _gradient_into(
        out_NV, logits_NV, targets_N, statistics_3N, gradients_2N, vocab_start, columns, vocabulary, temperature
    )
    return out_NV


@token_gradient.register_fake
def _(
    logits_NV: Tensor,
    targets_N: Tensor,
    statistics_3N: Tensor,
    gradients_2N: Tensor,
    vocab_start: int,
    columns: int,
    vocabulary: int,
    temperature: float,
) -> Tensor:
    return torch.empty_like(logits_NV, memory_format=torch.contiguous_format)


@torch.library.custom_op("gipo_mc::token_gradient_", mutates_args=("logits_NV",), device_types=("cpu", "cuda"))
def token_gradient_(
    logits_NV: Tensor,
    targets_N: Tensor,
    statistics_3N: Tensor,
    gradients_2N: Tensor,
    vocab_start: int,
    columns: int,
    vocabulary: int,
    temperature: float,
) -> None:
    """As `token_gradient`, written over the logits themselves."""
    _gradient_into(
        logits_NV, logits_NV, targets_N, statistics_3N, gradients_2N, vocab_start, columns, vocabulary, temperature
    )


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    logits_NV, targets_N, _, *numbers, inplace_backward = inputs
    ctx.numbers, ctx.inplace = numbers, inplace_backward
    ctx.save_for_backward(logits_NV, targets_N, output)


def _backward(ctx, gradient_4N: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    logits_NV, targets_N, merged_4N = ctx.saved_tensors
    arguments = (logits_NV.detach(), targets_N, merged_4N.detach()[1:], gradient_4N[:2], *ctx.numbers)
    if ctx.inplace:
        # The mutation raises the version of the logits: a second consumer that saved them fails loudly in its backward.
        token_gradient_(*arguments)
        return arguments[0], *(None,) * 7
    return token_gradient(*arguments), *(None,) * 7


token_merge.register_autograd(_backward, setup_context=_save)


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
        where nothing else uses the logits; needs a backward pass through them exactly once, outside torch.compile.

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
    partials_4N = token_partials(logits_NV.detach(), targets_N, vocab_start, columns, temperature)
    partials_R4N = partials_4N[None]
    if ranks > 1:
        partials_R4N = partials_4N.new_empty((ranks, *partials_4N.shape))
        dist.all_gather(list(partials_R4N.unbind()), partials_4N, group=group)
    merged_4N = token_merge(
        logits_NV, targets_N, partials_R4N, vocab_start, columns, vocabulary, temperature, inplace_backward
    )
    logp_N, entropy_N, _, _ = merged_4N.unbind()
    return TokenStatistics(logp_N, entropy_N)
