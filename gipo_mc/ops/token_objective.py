"""Ops A and B joined: from the logits of packed response tokens to the group objective of their sequences.

For a vocabulary that is not split over tensor-parallel ranks. The logits are read once forward, and once backward,
where their gradient takes their place: each token's two coefficients (of its log-prob and its entropy) come from four
numbers of its sequence inside the kernel, so that nothing a token long is written by one kernel for the next. Kept for
the backward pass: 16 bytes a token. `gipo_mc.ops.reference` holds the definition: op A, then op B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gipo_mc.ops import checks, native, reference
from gipo_mc.ops.group_objective import GROUP_FIELDS, SEQUENCE_FIELDS
from gipo_mc.ops.results import GroupObjective, TokenObjective, differentiable_fields

_OP = "token_objective"
JOINED_FIELDS = SEQUENCE_FIELDS + 1  # kJoinedFields of csrc/token_objective.h: op B's, then the sum of the entropies
TOKEN_FIELDS = 4  # kTokenFields there: log-prob, entropy, maximum, ln sum
_CHUNK = 4  # tokens that one block reduces on CUDA


class _Batch(NamedTuple):
    """The first parameters of every op below, as `token_objective` takes them. columns: of the true vocabulary.
    estimator, signal_form: positions in checks.ESTIMATORS and checks.SIGNAL_FORMS."""

    logits_NV: Tensor
    targets_N: Tensor
    behaviour_logp_BT: Tensor
    reference_logp_BT: Tensor
    advantage_BT: Tensor
    length_B: Tensor
    group_probs_BM: Tensor
    kl_weight_B: Tensor
    columns: int
    temperature: float
    clip: float
    estimator: int
    signal_form: int


class _Signal(NamedTuple):
    """What forward takes beside the batch."""

    behaviour_signal_B: Tensor


class _Gradients(NamedTuple):
    """What the gradient ops take beside the batch: S_i and the statistics of the tokens from forward, and the gradients
    of the outputs, None for one that was not used."""

    signal_B: Tensor
    statistics_4N: Tensor
    of_signal_B: Tensor | None
    of_surrogate_B: Tensor | None
    of_kl_B: Tensor | None
    of_mass_M: Tensor | None
    of_weighted_M: Tensor | None
    of_weighted_kl: Tensor | None
    of_entropy_B: Tensor | None


_FIELDS = len(_Batch._fields)


def _arguments(batch: _Batch) -> tuple[list[Any], list[Tensor]]:
    """(what both kernels take first, the tensors whose addresses that holds)."""
    logits_NV, advantage_BT = batch.logits_NV, batch.advantage_BT
    size, time = advantage_BT.shape
    tokens = [x.contiguous() for x in (batch.behaviour_logp_BT, batch.reference_logp_BT, advantage_BT)]
    vectors = [x.contiguous() for x in (batch.length_B, batch.group_probs_BM, batch.kl_weight_B)]
    bounded_B, targets_N = batch.length_B.clamp(0, time), batch.targets_N.contiguous()
    start_B = bounded_B.cumsum(0) - bounded_B
    arguments = [
        *(native.address(logits_NV), native.code(logits_NV), logits_NV.shape[0], batch.columns, logits_NV.stride(0)),
        *(native.address(targets_N), batch.temperature),
        *(*map(native.address, tokens), native.code(advantage_BT), size, time, batch.group_probs_BM.shape[1]),
        *(*map(native.address, vectors), batch.clip, batch.estimator, batch.signal_form),
        *(native.address(start_B), _CHUNK),
    ]
    return arguments, [targets_N, *tokens, *vectors, start_B]


def _fake_forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, (signal_B,) = _Batch(*inputs[:_FIELDS]), inputs[_FIELDS:]
    size, groups = batch.group_probs_BM.shape
    shapes = ((JOINED_FIELDS, size), (GROUP_FIELDS * groups + 1,), (TOKEN_FIELDS, batch.logits_NV.shape[0]))
    return tuple(signal_B.new_empty(shape) for shape in shapes)  # type: ignore[return-value]


@native.op("token_objective", _fake_forward, schema=native.schema(_Batch, _Signal, returns="(Tensor, Tensor, Tensor)"))
def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """[7, B]: op B's six per sequence and the sum of the entropies; [2 M + 1]: op B's sums; [4, N]: log-prob, entropy,
    maximum, ln sum."""
    batch, (signal_B,) = _Batch(*inputs[:_FIELDS]), inputs[_FIELDS:]
    arguments, _kept = _arguments(batch)
    signal_B = signal_B.contiguous()
    outputs = sequence_7B, sums_2M1, statistics_4N = _fake_forward(*inputs)
    chunks_7BC = signal_B.new_empty((*sequence_7B.shape, -(-batch.advantage_BT.shape[1] // _CHUNK)))
    buffers = (signal_B, statistics_4N, chunks_7BC, sequence_7B, sums_2M1)
    native.call("token_objective", batch.logits_NV.device, *arguments, *map(native.address, buffers))
    return outputs


def _gradient_into(out_NV: Tensor, inputs: Sequence[Any]) -> Tensor:
    """Writes the gradient of the logits; returns that of the group probabilities."""
    batch, (signal_B, statistics_4N, *upstream) = _Batch(*inputs[:_FIELDS]), _Gradients(*inputs[_FIELDS:])
    arguments, _kept = _arguments(batch)
    signal_B, statistics_4N, upstream = signal_B.contiguous(), statistics_4N.contiguous(), native.upstream(*upstream)
    probs_gradient_BM = torch.empty_like(batch.group_probs_BM, memory_format=torch.contiguous_format)
    native.call(
        "token_objective_gradient",
        out_NV.device,
        *(*arguments, native.address(signal_B), *map(native.address, upstream)),
        *(native.address(statistics_4N), batch.logits_NV.shape[1]),
        *(native.address(out_NV), out_NV.stride(0), native.address(probs_gradient_BM)),
    )
    return probs_gradient_BM


def _fake_gradient(*inputs: Any) -> tuple[Tensor, Tensor]:
    batch, dense = _Batch(*inputs[:_FIELDS]), torch.contiguous_format
    logits_gradient_NV = torch.empty_like(batch.logits_NV, memory_format=dense)
    return logits_gradient_NV, torch.empty_like(batch.group_probs_BM, memory_format=dense)


@native.op(
    "token_objective_gradient",
    _fake_gradient,
    schema=native.schema(_Batch, _Gradients, returns="(Tensor, Tensor)"),
)
def _gradient(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Gradients of logits_NV and group_probs_BM."""
    out_NV = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
    return out_NV, _gradient_into(out_NV, inputs)


_MUTATES = ("logits_NV",)


@native.op(
    "token_objective_gradient_",
    lambda *inputs: _fake_gradient(*inputs)[1],
    mutates=_MUTATES,
    schema=native.schema(_Batch, _Gradients, returns="Tensor", mutates=_MUTATES),
)
def _gradient_(*inputs: Any) -> Tensor:
    """As `_gradient`, the first result written over the logits themselves."""
    return _gradient_into(inputs[0], inputs)


class _TokenObjective(torch.autograd.Function):
    """Every output by itself, as in op B: its nine, then the sums of the entropies."""

    @staticmethod
    def forward(ctx: Any, inplace_backward: bool, *inputs: Any) -> tuple[Tensor, ...]:
        sequence_7B, sums_2M1, statistics_4N = _forward(*inputs)
        outputs = GroupObjective.of_buffers(sequence_7B[:-1], sums_2M1)
        ctx.numbers, ctx.inplace = inputs[8:_FIELDS], inplace_backward
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(outputs.clipped_B, outputs.ratio_max_B, outputs.behaviour_kl_B)
        ctx.save_for_backward(*inputs[:8], outputs.signal_B, statistics_4N)
        return *outputs, sequence_7B[-1]

    @staticmethod
    @native.differentiable_once("token_objective")
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        logits_NV, *tensors, signal_B, statistics_4N = ctx.saved_tensors
        used = (*differentiable_fields(upstream), upstream[-1])
        arguments = (logits_NV.detach(), *tensors, *ctx.numbers, signal_B, statistics_4N, *used)
        if ctx.inplace:
            # As in `token_statistics`.
            gradients = arguments[0], _gradient_(*arguments)
        else:
            gradients = _gradient(*arguments)
        return None, gradients[0], *(None,) * 5, gradients[1], *(None,) * 7


def token_objective(
    logits_NV: Tensor,
    targets_N: Tensor,
    behaviour_logp_BT: Tensor,
    reference_logp_BT: Tensor,
    advantage_BT: Tensor,
    length_B: Tensor,
    group_probs_BM: Tensor,
    behaviour_signal_B: Tensor,
    kl_weight_B: Tensor,
    *,
    clip: float,
    kl_estimator: Literal["k1", "k2", "k3"],
    signal_form: Literal["ratio", "log_prob", "log_prob_mean"],
    vocab_size: int | None = None,
    temperature: float = 1.0,
    inplace_backward: bool = False,
    check_values: bool = True,
) -> TokenObjective:
    """`group_objective` of the log-probs that `token_statistics` finds in these logits, and the sums of the entropies.

    logits_NV: float32, bfloat16, float16 (or float64, CPU) [N, V], the rows of sequence 0, then those of sequence 1,
        ...: N = sum of length_B. Any row stride, columns contiguous, the whole vocabulary.
    targets_N: int64 [N], the tokens themselves; none is ignored.
    behaviour_logp_BT, reference_logp_BT, advantage_BT: [B, T], behaviour_signal_B, kl_weight_B [B] and group_probs_BM
        [B, M]: as for `group_objective`, all float32 (float64 when logits_NV is). length_B: int64 [B], tokens,
        0 <= length <= T.
    vocab_size: ids of the true vocabulary; columns at or beyond it are padding (probability 0, gradient 0).
    clip, kl_estimator, signal_form, check_values: see `group_objective`. temperature, inplace_backward: see
        `token_statistics`.

    Differentiable once, with respect to logits_NV and group_probs_BM. Raises TypeError or ValueError for wrong input;
    on CUDA ids and lengths are not looked at: lengths must add up to N there too.
    """
    checks.logits(_OP, logits_NV, targets_N, temperature)
    rows, width = logits_NV.shape
    columns = width if vocab_size is None else vocab_size
    if not 1 <= columns <= width:
        raise ValueError(f"{_OP}: vocab_size={columns}, but logits_NV has {width} columns; give 1 to {width}.")
    checks.targets(_OP, targets_N, columns, ignored=False)
    tokens = {
        "behaviour_logp_BT": behaviour_logp_BT,
        "reference_logp_BT": reference_logp_BT,
        "advantage_BT": advantage_BT,
    }
    estimator, form = checks.objective(
        _OP,
        checks.accumulator(logits_NV.dtype),
        logits_NV.device,
        tokens,
        length_B,
        group_probs_BM,
        behaviour_signal_B,
        kl_weight_B,
        clip=clip,
        kl_estimator=kl_estimator,
        signal_form=signal_form,
        check_values=check_values,
    )
    if (checks.values_visible(length_B) and int(length_B.sum()) != rows) or len(length_B) == 0 < rows:
        raise ValueError(f"{_OP}: length_B adds up to {int(length_B.sum())} tokens, but logits_NV has {rows} rows.")
    if inplace_backward:
        checks.overwritable(_OP, logits_NV)
    behaviour, reference_logp, advantage = (x.detach() for x in tokens.values())
    if native.use_reference():
        return reference.token_objective(
            logits_NV,
            targets_N,
            behaviour,
            reference_logp,
            advantage,
            length_B,
            group_probs_BM,
            behaviour_signal_B,
            kl_weight_B,
            clip=clip,
            kl_estimator=kl_estimator,
            signal_form=signal_form,
            vocab_size=vocab_size,
            temperature=temperature,
        )
    *objective, entropy_B = _TokenObjective.apply(
        inplace_backward and logits_NV.requires_grad,
        logits_NV,
        targets_N,
        behaviour,
        reference_logp,
        advantage,
        length_B,
        group_probs_BM,
        kl_weight_B.detach(),
        columns,
        temperature,
        clip,
        estimator,
        form,
        behaviour_signal_B.detach(),
    )
    return TokenObjective(GroupObjective(*objective), entropy_B)
