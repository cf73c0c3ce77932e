"""PPO losses of one micro-batch, as shares of the loss of the whole mini-batch.

Sources: Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347 (eq. 7, clipped surrogate; the
clipped value loss is that of its reference implementation); Zheng et al., arXiv 2310.11971 (stage 2, beta * R_var).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gipo_mc.algorithms.advantages import response_mask

if TYPE_CHECKING:
    from gipo_mc.ops import GroupObjective


def policy_loss_terms(
    objective: GroupObjective,
    *,
    tokens: int | float | Tensor,
    signal_gradient_B: Tensor | None = None,
    beta: float | Tensor = 0.0,
    entropy_sum: Tensor | None = None,
    entropy_coef: float = 0.0,
    kl_weight_B: Tensor | None = None,
) -> Tensor:
    """Scalar loss of a micro-batch; summed over all micro-batches and ranks it is the loss of the mini-batch:

        L = - (1/n) sum_i surrogate_i  +  beta sum_i c'_i s_i  -  entropy_coef (1/n) sum_it H_it
            + (1/n) sum_i eta_i KL_i

    objective: op B of this micro-batch, differentiable with respect to the policy's log-probs.
    tokens: n, response tokens of the whole mini-batch, over all ranks (a global sum, never a mean of means).
    signal_gradient_B: c'_i = dR_var/dS_i, [B], fixed from a first pass over the whole mini-batch
        (`group_invariance.signal_gradient`), so that the second term has the gradient of beta * R_var and is exact
        whatever the split; its value is not R_var's. None (PPO): left out.
    beta: weight of R_var after `group_invariance.bounded_beta`; 0 leaves the term out, bit for bit PPO.
    entropy_sum: scalar, sum of the entropies (nats) of this micro-batch's response tokens.
    kl_weight_B: [B], weight of each sequence's KL when the KL stands in the loss; None: it stands in the reward.
    """
    per_sequence_B = -objective.surrogate_B
    if kl_weight_B is not None:
        per_sequence_B = per_sequence_B + kl_weight_B.detach() * objective.kl_B
    loss = per_sequence_B.sum()
    if entropy_sum is not None and entropy_coef:
        loss = loss - entropy_coef * entropy_sum
    loss = loss / tokens
    if signal_gradient_B is not None and (isinstance(beta, Tensor) or beta):
        loss = loss + beta * (signal_gradient_B.detach() * objective.signal_B).sum()
    return loss


def value_loss_sum(
    values_BT: Tensor, old_values_BT: Tensor, return_BT: Tensor, length_B: Tensor, clip: float
) -> Tensor:
    """Sum over response tokens of 0.5 max((V - R)^2, (V_clip - R)^2), V_clip = V_old + clamp(V - V_old, -clip, clip).

    All [B, T], differentiable with respect to values_BT; length_B int64 [B], tokens; clip 0: 0.5 (V - R)^2.
    The caller divides by the response tokens of the whole mini-batch. Padding never matters, even NaN.
    """
    mask = response_mask(length_B, values_BT.shape[1])
    # Selected before the arithmetic: a NaN in the padding would otherwise come back through the product rule.
    values, old, target = (torch.where(mask, x, 0.0) for x in (values_BT, old_values_BT.detach(), return_BT.detach()))
    error = (values - target).square()
    if clip > 0:
        clipped = old + (values - old).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - target).square())
    return 0.5 * error.sum()


def explained_variance(values_BT: Tensor, return_BT: Tensor, length_B: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the response tokens: 1 perfect, 0 no better than a constant, negative worse.

    All [B, T]; length_B int64 [B]. 0 when the returns do not vary (nothing to explain).
    """
    mask = response_mask(length_B, values_BT.shape[1])
    returns = return_BT[mask].double()
    residual = returns - values_BT[mask].double()
    if returns.numel() == 0:
        return 0.0
    variance = float(returns.var(correction=0))
    return 1.0 - float(residual.var(correction=0)) / variance if variance > 0.0 else 0.0
