"""Group-DPO: preference losses weighted towards the group with the highest loss.

Source: Ramesh et al., "Group Robust Preference Optimization in Reward-free RLHF", arXiv 2405.20304 (GR-DPO, GR-IPO).
min_theta max_alpha sum_g alpha_g L_g on the simplex: gradient descent in theta, exponentiated gradient in alpha.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gipo_mc.algorithms.distribution import winsorised
from gipo_mc.algorithms.group_dro import exponentiated_gradient
from gipo_mc.algorithms.group_invariance import group_statistics

#: A pair's loss is an outlier beyond so many times the distance from the median that nine tenths of its batch keep to.
LOSS_OUTLIER = 20.0


def pair_weights(weight_M: Sequence[float], share_M: Sequence[float], group_probs_PM: Tensor) -> Tensor:
    """w_i = sum_g alpha_g p_ig / pi_g, what multiplies the loss of each pair, [P].

    share_M: pi_g, the mean of p_ig over the training data: the mean of w_i l_i over any batch estimates
    sum_g alpha_g L_g. Written so that w_i is exactly 1 where alpha = pi, and for a pair that is in no group (p_i = 0).
    """
    excess_M = [weight / share - 1.0 if share else 0.0 for weight, share in zip(weight_M, share_M, strict=True)]
    return 1.0 + (group_probs_PM * group_probs_PM.new_tensor(excess_M)).sum(dim=1)


def next_weights(weight_M: Sequence[float], loss_P: Tensor, group_probs_PM: Tensor, step: float) -> list[float]:
    """alpha_g <- alpha_g exp(step (L_g - L)) / Z, M numbers that sum to 1.

    loss_P: l_i of the whole batch, L their mean, L_g = sum_i p_ig l_i / P_g. The factor exp(-step L) cancels in Z; it
    makes a group that has no pair in the batch count as one of average loss. A loss far out of its batch counts as the
    largest that is not: a weight that one pair drives to 0 never comes back.
    """
    loss_P, _ = winsorised(loss_P.double().cpu(), LOSS_OUTLIER)
    mass_M, excess_M = group_statistics(group_probs_PM.double().cpu(), loss_P - loss_P.mean())
    pairs = zip(excess_M.tolist(), mass_M.tolist(), strict=True)
    return exponentiated_gradient(weight_M, [step * excess / mass if mass > 0 else 0.0 for excess, mass in pairs])
