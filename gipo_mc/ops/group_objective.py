"""Op B: everything the policy and classifier losses need of a (micro-)batch, in one pass over its tokens.

Per sequence: signal s_i, clipped surrogate, KL to the reference, ratio statistics; per group: P_g = sum_i p_ig and
Q_g = sum_i p_ig s_i. P and Q of micro-batches and ranks are added by the caller; `group_variance` then gives R_var
(Zheng et al., arXiv 2310.11971). Backward is one pass too, whichever outputs were used: each token's gradient is
its sequence's three coefficients (of signal, surrogate and KL) times three token terms.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gipo_mc.ops import checks, native, reference
from gipo_mc.ops.results import GroupObjective, GroupVariance, differentiable_fields

_OP = "group_objective"
SEQUENCE_FIELDS = 6  # kSequenceFields of csrc/group_objective.h: the first fields of GroupObjective
GROUP_FIELDS = 2  # kGroupFields there: mass and weighted signal of each group; one number more, the weighted KL


def _fake_forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    batch, groups = inputs[5].shape
    return inputs[5].new_empty((SEQUENCE_FIELDS, batch)), inputs[5].new_empty(GROUP_FIELDS * groups + 1)


@native.op("group_objective", _fake_forward)
def _forward(
    logp_BT: Tensor,
    behaviour_logp_BT: Tensor,
    reference_logp_BT: Tensor,
    advantage_BT: Tensor,
    length_B: Tensor,
    group_probs_BM: Tensor,
    behaviour_signal_B: Tensor,
    kl_weight_B: Tensor,
    clip: float,
    estimator: int,
    signal_form: int,
) -> tuple[Tensor, Tensor]:
    """[6, B], the fields of GroupObjective a sequence, and [2 M + 1], its sums. estimator and signal_form: positions in
    checks.ESTIMATORS and SIGNAL_FORMS."""
    tokens = [x.contiguous() for x in (logp_BT, behaviour_logp_BT, reference_logp_BT, advantage_BT)]
    vectors = [x.contiguous() for x in (length_B, group_probs_BM, behaviour_signal_B, kl_weight_B)]
    (batch, time), groups = logp_BT.shape, group_probs_BM.shape[1]
    sequence_6B = group_probs_BM.new_empty((SEQUENCE_FIELDS, batch))
    sums_2M1 = group_probs_BM.new_empty(GROUP_FIELDS * groups + 1)
    native.call(
        "group_objective",
        logp_BT.device,
        *(*map(native.address, tokens), native.code(logp_BT), batch, time, groups),
        *(*map(native.address, vectors), clip, estimator, signal_form),
        *(native.address(sequence_6B), native.address(sums_2M1)),
    )
    return sequence_6B, sums_2M1


def _fake_gradient(*inputs: Any) -> tuple[Tensor, Tensor]:
    dense = torch.contiguous_format
    return torch.empty_like(inputs[0], memory_format=dense), torch.empty_like(inputs[5], memory_format=dense)


@native.op("group_objective_gradient", _fake_gradient)
def _gradient(
    logp_BT: Tensor,
    behaviour_logp_BT: Tensor,
    reference_logp_BT: Tensor,
    advantage_BT: Tensor,
    length_B: Tensor,
    group_probs_BM: Tensor,
    kl_weight_B: Tensor,
    signal_B: Tensor,
    clip: float,
    estimator: int,
    signal_form: int,
    of_signal_B: Tensor | None,
    of_surrogate_B: Tensor | None,
    of_kl_B: Tensor | None,
    of_mass_M: Tensor | None,
    of_weighted_M: Tensor | None,
    of_weighted_kl: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of logp_BT and group_probs_BM from those of the outputs; None for one that was not used."""
    tokens = [x.contiguous() for x in (logp_BT, behaviour_logp_BT, reference_logp_BT, advantage_BT)]
    vectors = [x.contiguous() for x in (length_B, group_probs_BM, kl_weight_B, signal_B)]
    upstream = native.upstream(of_signal_B, of_surrogate_B, of_kl_B, of_mass_M, of_weighted_M, of_weighted_kl)
    (batch, time), groups = logp_BT.shape, group_probs_BM.shape[1]
    logp_gradient_BT, probs_gradient_BM = torch.empty_like(tokens[0]), torch.empty_like(vectors[1])
    native.call(
        "group_objective_gradient",
        logp_BT.device,
        *(*map(native.address, tokens), native.code(logp_BT), batch, time, groups),
        *(*map(native.address, vectors), clip, estimator, signal_form, *map(native.address, upstream)),
        *(native.address(logp_gradient_BT), native.address(probs_gradient_BM)),
    )
    return logp_gradient_BT, probs_gradient_BM


class _Once(torch.autograd.Function):
    """What goes into the reference, which is to refuse second derivatives as the kernels do."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(tensor)
        return tensor.view_as(tensor)

    @staticmethod
    @native.differentiable_once(_OP)
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        return upstream


class _GroupObjective(torch.autograd.Function):
    """Every output by itself, so that the gradient of each comes as it is, or not at all: on a GPU each copy of one
    into a common buffer would be a launch."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, _, kl_weight_B, clip, estimator, signal_form = inputs
        outputs = GroupObjective.of_buffers(*_forward(*inputs))
        ctx.numbers = (clip, estimator, signal_form)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(outputs.clipped_B, outputs.ratio_max_B, outputs.behaviour_kl_B)
        ctx.save_for_backward(*tensors, kl_weight_B, outputs.signal_B)
        return tuple(outputs)

    @staticmethod
    @native.differentiable_once(_OP)
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        logp_gradient_BT, probs_gradient_BM = _gradient(
            *ctx.saved_tensors, *ctx.numbers, *differentiable_fields(upstream)
        )
        return logp_gradient_BT, None, None, None, None, probs_gradient_BM, None, None, None, None, None


def group_objective(
    logp_BT: Tensor,
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
    check_values: bool = True,
) -> GroupObjective:
    """Signals, surrogate, KL and group sums of B sequences; see `GroupObjective` for the outputs.

    logp_BT, behaviour_logp_BT, reference_logp_BT, advantage_BT: [B, T], one float dtype; entries at t >= length never
        matter, whatever they hold. length_B: int64 [B], tokens, 0 <= length <= T.
    group_probs_BM [B, M], behaviour_signal_B [B], kl_weight_B [B]: float32 (float64 when logp_BT is). The second is the
        signal under the behaviour policy, used by the form "ratio"; the third weights a sequence's KL in weighted_kl.
    clip: range of the ratio exp(logp - behaviour) (PPO, Schulman et al., arXiv 1707.06347).
    kl_estimator: "k1", "k2", "k3" of KL(pi || reference), per token.
    signal_form: "ratio": s_i = behaviour_signal_i + mean_t (ratio - 1) A, at ratio 1 the behaviour signal with the
        gradient of PPO; "log_prob": sum_t logp A (the paper); "log_prob_mean": its mean over tokens. The options
        algorithm.signal_form and signal_tokens have other words for them (docs/algorithm.md).
    check_values: look at probabilities and KL weights; False for what was looked at before (it costs time on a CPU).
    A sequence of length 0 has its behaviour signal ("ratio") or 0 as its signal, and 0 elsewhere.

    Differentiable once, with respect to logp_BT and group_probs_BM; RuntimeError in a second derivative, of kernels and
    references alike. Raises TypeError or ValueError for wrong input; of values, lengths, probabilities (rows that sum
    to 1) and KL weights (at least 0) are looked at on the CPU.
    """
    checks.floats(_OP, "logp_BT", logp_BT)
    names = ("logp_BT", "behaviour_logp_BT", "reference_logp_BT", "advantage_BT")
    tokens = dict(zip(names, (logp_BT, behaviour_logp_BT, reference_logp_BT, advantage_BT), strict=True))
    sequences = (length_B, group_probs_BM, behaviour_signal_B, kl_weight_B)
    estimator, form = checks.objective(
        _OP,
        logp_BT.dtype,
        logp_BT.device,
        tokens,
        *sequences,
        clip=clip,
        kl_estimator=kl_estimator,
        signal_form=signal_form,
        check_values=check_values,
    )
    constants = [x.detach() for x in (behaviour_logp_BT, reference_logp_BT, advantage_BT)]
    tensors = (logp_BT, *constants, length_B, group_probs_BM, behaviour_signal_B.detach(), kl_weight_B.detach())
    if native.use_reference():
        tensors = (_Once.apply(logp_BT), *constants, length_B, _Once.apply(group_probs_BM), *tensors[6:])
        return reference.group_objective(*tensors, clip=clip, kl_estimator=kl_estimator, signal_form=signal_form)
    return GroupObjective(*_GroupObjective.apply(*tensors, clip, estimator, form))


def group_variance(
    mass_M: Tensor, weighted_M: Tensor, total: int | float | Tensor, *, weights: Literal["size", "population"]
) -> GroupVariance:
    """(R_g, Rbar, R_var) from P_g and Q_g of the whole mini-batch: R_g = Q_g / P_g, Rbar = sum_g omega_g R_g,
    R_var = sum_g omega_g (R_g - Rbar)^2 (Zheng et al., arXiv 2310.11971). Plain torch, differentiable.

    mass_M, weighted_M: floating [M], of one dtype. total: N, the number of sequences (the sum of the masses), as a
        number or a tensor of one.
    weights: "size", omega_g = P_g / N, or "population", 1 over the number of groups with mass.
    A group without mass has R_g = 0, omega_g = 0 and finite (zero) gradients.

    Raises TypeError or ValueError for wrong input; on the CPU also where, with "size", the masses do not add up to N.
    """
    checks.choice("group_variance", "weights", weights, ("size", "population"))
    checks.sums_by_group("group_variance", mass_M, weighted_M, total, of_all=weights == "size")
    present_M = mass_M > 0
    objective_M = weighted_M.where(present_M, 0.0) / mass_M.where(present_M, 1.0)
    if weights == "size":
        share = torch.as_tensor(total, dtype=mass_M.dtype, device=mass_M.device)
        omega_M = mass_M.where(present_M, 0.0) / share.where(share > 0, 1.0)
    else:
        omega_M = present_M / present_M.sum().clamp(min=1).to(mass_M.dtype)
    mean = (omega_M * objective_M).sum()
    return GroupVariance(objective_M, mean, (omega_M * (objective_M - mean).square()).sum())
