"""The group variance R_var and its closed-form gradients: what stage 1 maximises and stage 2 minimises.

Source: Zheng et al., "Improving Generalization of Alignment with Human Preferences through Group Invariant Learning",
arXiv 2310.11971. For N sequences with signals S_i and soft assignments p_ig:

    P_g = sum_i p_ig      Q_g = sum_i p_ig S_i      R_g = Q_g / P_g
    R_var = sum_g omega_g (R_g - Rbar)^2            Rbar = sum_g omega_g R_g
    omega_g = P_g / N ("size", the between-group variance of ANOVA)  or  1 / M ("population", the paper)

R_var is not linear in the batch: the mean of the variances of micro-batches is another, wrong objective. Hence two
passes: P and Q are summed over all micro-batches and ranks first (`group_statistics`, then a sum in rank order, then
`moments`), and the second pass back-propagates sum_i c'_i S_i or sum_ig d_ig p_ig with c' = dR_var/dS and
d = dR_var/dp fixed. A group without mass has no weight: omega_g = 0, and R_g is reported as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gipo_mc.ops.checks import SignalForm
from gipo_mc.ops.group_objective import group_variance

Weights = Literal["size", "population"]
#: What the policy-dependent part of S with the form "ratio" is a mean over (algorithm.penalty_over).
Over = Literal["tokens", "responses"]

# Mass at or under which a group counts as empty: 1 / P_g and S / P_g must stay finite in fp32.
EMPTY_MASS = 1e-30


@dataclass(frozen=True)
class GroupMoments:
    """R_var of a mini-batch with everything its gradients need. Tensors share one dtype and carry no gradient.

    mass_M: P_g, sequences. weighted_M: Q_g. total: N, scalar tensor, sequences.
    objective_M: R_g, in units of the signal (0 for an empty group). mean, variance: Rbar and R_var, scalar tensors.
    omega_M: weights of the groups, sum 1; 0 for groups that are empty or excluded. weights: how they were chosen.
    """

    mass_M: Tensor
    weighted_M: Tensor
    total: Tensor
    objective_M: Tensor
    mean: Tensor
    variance: Tensor
    omega_M: Tensor
    weights: Weights


def group_statistics(group_probs_NM: Tensor, signal_N: Tensor) -> tuple[Tensor, Tensor]:
    """(P_g, Q_g), each [M], of any part of a mini-batch; parts add up. group_probs_NM [N, M], signal_N [N]."""
    return group_probs_NM.sum(0), (group_probs_NM * signal_N.unsqueeze(1)).sum(0)


def moments(mass_M: Tensor, weighted_M: Tensor, total: int | float | Tensor, weights: Weights) -> GroupMoments:
    """`GroupMoments` from sums over the whole mini-batch (all micro-batches, all ranks).

    mass_M, weighted_M: [M]; total: N, the sequences of the mini-batch; weights: "size" or "population".
    """
    everyone_M = torch.ones_like(mass_M, dtype=torch.bool)
    return _moments(mass_M.detach(), weighted_M.detach(), total, weights, everyone_M)


def _moments(
    mass_M: Tensor, weighted_M: Tensor, total: int | float | Tensor, weights: Weights, allowed_M: Tensor
) -> GroupMoments:
    """Moments of the allowed groups among themselves: the others get omega 0, the weights still sum to 1."""
    if weights not in ("size", "population"):
        raise ValueError(f"weights={weights!r} is neither 'size' nor 'population'.")
    total = torch.as_tensor(total, dtype=mass_M.dtype, device=mass_M.device)
    present_M = mass_M > EMPTY_MASS
    active_M = present_M & allowed_M
    counted_M = mass_M.where(active_M, 0.0)
    # N itself where no group is left out: the masses only add up to it within rounding.
    share = torch.where((active_M | ~present_M).all(), total, counted_M.sum()).clamp(min=EMPTY_MASS)
    _, mean, variance = group_variance(counted_M, weighted_M.where(active_M, 0.0), share, weights=weights)
    omega_M = counted_M / share if weights == "size" else active_M / active_M.sum().clamp(min=1).to(mass_M.dtype)
    objective_M = torch.where(present_M, weighted_M / mass_M.where(present_M, 1.0), 0.0)
    return GroupMoments(mass_M, weighted_M, total, objective_M, mean, variance, omega_M, weights)


def with_mass_floor(moments: GroupMoments, mass_floor: float) -> GroupMoments:
    """The moments of the groups that hold at least the fraction `mass_floor` of the sequences, among themselves.

    A group of a few sequences has a noisy R_g that would drive the policy. Leaving it out of R_var altogether, not
    only its coefficient, keeps the re-weighting zero-sum. With one group left R_var is 0 and nothing moves.
    """
    allowed_M = moments.mass_M >= mass_floor * moments.total
    return _moments(moments.mass_M, moments.weighted_M, moments.total, moments.weights, allowed_M)


def signal_gradient(moments: GroupMoments, group_probs_BM: Tensor) -> Tensor:
    """c'_i = dR_var / dS_i = 2 sum_g omega_g (R_g - Rbar) p_ig / P_g, [B], without gradient.

    "size": (2/N) sum_g p_ig (R_g - Rbar); "population": (2/M) sum_g (p_ig / P_g)(R_g - Rbar).
    group_probs_BM: [B, M], any rows of the mini-batch. Over the whole mini-batch the c'_i sum to 0.
    """
    per_mass_M = moments.omega_M / moments.mass_M.clamp(min=EMPTY_MASS)
    slope_M = 2.0 * per_mass_M * (moments.objective_M - moments.mean)
    return (group_probs_BM.detach() * slope_M).sum(1).to(group_probs_BM.dtype)


def probability_gradient(moments: GroupMoments, signal_B: Tensor) -> Tensor:
    """d_ig = dR_var / dp_ig, [B, M], without gradient.

    "size": (2 S_i R_g - R_g^2 - 2 Rbar S_i + Rbar^2) / N = (R_g - Rbar)(2 S_i - R_g - Rbar) / N;
    "population": (2/M)(R_g - Rbar)(S_i - R_g) / P_g.
    signal_B: S_i, [B], any rows of the mini-batch. Rows of p sum to 1, so each formula holds up to a constant a row,
    which the softmax cancels. Empty groups get 0.
    """
    signal_B1 = signal_B.detach().unsqueeze(1)
    gap_M = moments.objective_M - moments.mean
    per_mass_M = moments.omega_M / moments.mass_M.clamp(min=EMPTY_MASS)
    if moments.weights == "size":
        slope_BM = 2.0 * signal_B1 - moments.objective_M - moments.mean
    else:
        slope_BM = 2.0 * (signal_B1 - moments.objective_M)
    return (per_mass_M * gap_M * slope_BM).to(signal_B.dtype)


def length_share(length_B: Tensor, form: SignalForm, over: Over) -> Tensor | None:
    """T_i / T of each response, [B], with T the mean length: what the policy-dependent part of S and of dR_var/dS is
    multiplied by with the form "ratio" over "tokens". None otherwise: 1.

    length_B: int64 [B], all rows of the mini-batch.

    PPO's loss is a mean over all n tokens, mean_t (ratio - 1) A one over a response's own. With "responses" the penalty
    therefore weighs on a response of T_i tokens T / T_i times as much, beside PPO, as on one of mean length.
    """
    if form != "ratio" or over == "responses":
        return None
    return length_B * (len(length_B) / length_B.sum().clamp(min=1))


def length_factor(length_B: Tensor, form: SignalForm, over: Over) -> Tensor:
    """What the penalty's part of a response's weight is multiplied by for its length, [B]: 1 throughout with the form
    "ratio" over "tokens", T / T_i with "ratio" over "responses" and with "log_prob_mean", T with "log_prob".

    length_B: int64 [B], all rows of the mini-batch, of mean length T.
    """
    length_B = length_B.double()
    if form == "ratio" and over == "tokens":
        return torch.ones_like(length_B)
    mean = length_B.mean()
    return mean.expand_as(length_B) if form == "log_prob" else mean / length_B.clamp(min=1)


def relative_weight(
    beta: float | Tensor, moments: GroupMoments, group_probs_BM: Tensor, length_factor_B: Tensor | float = 1.0
) -> Tensor:
    """w_i = 1 - beta N dR_var/dS_i f_i, [B]: by what stage 2 multiplies each sequence's policy gradient at the
    behaviour policy, where S has the gradient of A (not log pi times another X).

    length_factor_B: f_i, see `length_factor`. With f = 1 the mean over the mini-batch is 1. Negative: the policy
    un-learns that sequence.
    """
    slope_B = moments.total.to(group_probs_BM.dtype) * signal_gradient(moments, group_probs_BM)
    return 1.0 - beta * slope_B * length_factor_B


def bounded_beta(beta: float, moments: GroupMoments, *, mass_floor: float, cap: float) -> tuple[Tensor, GroupMoments]:
    """(beta', moments'): what stage 2 is to use, `beta' * signal_gradient(moments', p)`.

    moments': `with_mass_floor`. beta' = min(beta, cap / max_g 2 (N omega_g / P_g) |R_g - Rbar|), a scalar tensor; with
    "size" the factor N omega_g / P_g is 1 (when no group is left out), so that 2 beta' |R_g - Rbar| <= cap. All
    relative weights with a length factor of 1 then lie in [1 - cap, 1 + cap]: with cap < 1 nothing is un-learned. cap
    = inf: no bound. One factor for all groups, because capping each by itself would break the zero sum.
    """
    if not beta >= 0.0 or not cap > 0.0:
        raise ValueError(f"beta={beta} must not be negative and cap={cap} must be positive.")
    kept = with_mass_floor(moments, mass_floor)
    per_mass_M = kept.total * kept.omega_M / kept.mass_M.clamp(min=EMPTY_MASS)
    steepest = (2.0 * per_mass_M * (kept.objective_M - kept.mean).abs()).max()
    # A zero slope bounds nothing; inf / tiny stays inf, so "no cap" needs no case of its own.
    bound = cap / steepest.clamp(min=torch.finfo(steepest.dtype).tiny)
    return bound.clamp(max=beta), kept


def beta_at(step: int, beta: float, ramp: int) -> float:
    """beta after `step` finished iterations: rises linearly from 0 at step 0 to beta at step `ramp`. ramp 0: beta."""
    return beta if step >= ramp else beta * step / ramp
