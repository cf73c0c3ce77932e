"""Group-DRO: the policy gradient of sequences weighted towards the group with the lowest objective.

Source: Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", arXiv 1911.08731 (algorithm 1), with
the loss of a group -R_g. max_theta min_q sum_g q_g R_g is solved by gradient ascent in theta and exponentiated gradient
in q, one step of q an iteration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from gipo_mc.algorithms.group_invariance import GroupMoments, with_mass_floor


def update_weights(weight_M: Sequence[float], moments: GroupMoments, step: float, mass_floor: float) -> list[float]:
    """q_g <- q_g exp(-step R_g) / Z, M numbers that sum to 1. moments: of the rollout batch (S normalised).

    A group under `mass_floor`, whose R_g is noise, is treated as one with R_g = 0, the mean of a normalised S.
    """
    present_M = (with_mass_floor(moments, mass_floor).omega_M > 0).tolist()
    objective_M = moments.objective_M.tolist()
    change_M = [-step * r if present else 0.0 for r, present in zip(objective_M, present_M, strict=True)]
    return exponentiated_gradient(weight_M, change_M)


def exponentiated_gradient(weight_M: Sequence[float], change_M: Sequence[float]) -> list[float]:
    """weight_g exp(change_g) / Z, M numbers that sum to 1: a step of mirror ascent on the simplex."""
    largest = max(change_M)  # taken out of every exponent, so that none overflows
    grown = [weight * math.exp(change - largest) for weight, change in zip(weight_M, change_M, strict=True)]
    return [weight / sum(grown) for weight in grown]


def sequence_weights(
    weight_M: Sequence[float], moments: GroupMoments, group_probs_BM: Tensor, mass_floor: float
) -> Tensor:
    """w_i = N sum_g q_g p_ig / P_g over the groups with mass, [B]: its mean over the batch is 1.

    PPO's surrogate of sequence i is multiplied by w_i, which maximises sum_g q_g R_g. Where no group is large enough
    every weight is 1.
    """
    kept = with_mass_floor(moments, mass_floor)
    weight_tensor_M = group_probs_BM.new_tensor(weight_M) * (kept.omega_M > 0)
    if not bool(weight_tensor_M.sum() > 0):
        return group_probs_BM.new_ones(len(group_probs_BM))
    share_M = (weight_tensor_M / weight_tensor_M.sum()) / kept.mass_M.clamp(min=1e-30)
    return moments.total.to(group_probs_BM.dtype) * (group_probs_BM * share_M).sum(dim=1)
