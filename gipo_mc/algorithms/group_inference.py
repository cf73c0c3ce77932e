"""Inferring groups: the classifier's loss, and which group is best.

Source: Zheng et al., arXiv 2310.11971 (stage 1: the classifier maximises R_var; adaptive KL needs the best group).
Two defaults depart from its letter, both found necessary: the signal is the normalised reward of the sequence
(`signal`), because the variance of raw sum_t log pi A collapses into one group; and the best group is the one whose
running mean reward is highest, because R_g of log pi A < 0 points to the wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gipo_mc.algorithms.group_invariance import EMPTY_MASS, GroupMoments, probability_gradient
from gipo_mc.algorithms.signal import ema

#: A group with a smaller share of the sequences is neither measured nor chosen as the best.
MEASURED_SHARE = 0.02


@dataclass(frozen=True)
class GroupState:
    """How the inferred groups stand, over the iterations.

    mean_M: running mean by group of what ranks them (the raw reward, or R_g), None where never measured.
    best_group: g_high, None before the first batch. flips: how often it changed.
    steps: iterations seen by `update_best_group`.
    """

    mean_M: tuple[float | None, ...]
    best_group: int | None = None
    flips: int = 0
    steps: int = 0

    @classmethod
    def initial(cls, groups: int) -> GroupState:
        """The state before the first iteration, with `groups` = M inferred groups."""
        return cls(mean_M=(None,) * groups)


def update_best_group(
    state: GroupState, group_probs_BM: Tensor, reward_B: Tensor, decay: float, measured_share: float = MEASURED_SHARE
) -> GroupState:
    """State with this iteration's rewards by group and g_high = argmax_g EMA(sum_i p_ig r_i / P_g).

    group_probs_BM [B, M] and reward_B [B] (finite; S instead of the reward for the paper's choice by R_g) of the whole
    rollout batch, equal on every rank.
    Groups that hold less than `measured_share` of the sequences are neither updated nor chosen, so an empty group never
    is. On a tie the present best group stays.
    """
    if group_probs_BM.shape[1] != len(state.mean_M):
        raise ValueError(
            f"group_probs_BM has {group_probs_BM.shape[1]} groups, the group state {len(state.mean_M)}: "
            "algorithm.groups must be what the state was made with."
        )
    if not len(reward_B):
        return state
    probs_BM, reward64_B = group_probs_BM.detach().double(), reward_B.detach().double()
    mass_M = probs_BM.sum(0).tolist()
    weighted_M = (probs_BM * reward64_B.unsqueeze(1)).sum(0).tolist()
    share_M = [mass / len(reward_B) for mass in mass_M]
    mean_M = tuple(
        ema(old, weighted / mass, decay) if share >= measured_share and mass > 0.0 else old
        for old, weighted, mass, share in zip(state.mean_M, weighted_M, mass_M, share_M, strict=True)
    )
    candidates = [
        (mean, group == state.best_group, -group)
        for group, (mean, share) in enumerate(zip(mean_M, share_M, strict=True))
        if mean is not None and share >= measured_share and share > 0.0
    ]
    best = -max(candidates)[2] if candidates else state.best_group
    return replace(
        state,
        mean_M=mean_M,
        best_group=best,
        flips=state.flips + int(state.best_group is not None and best != state.best_group),
        steps=state.steps + 1,
    )


def classifier_loss_terms(
    group_probs_BM: Tensor, signal_B: Tensor, batch_moments: GroupMoments, beta: float, balance: float = 0.0
) -> Tensor:
    """Scalar loss of a micro-batch, sum_ig p_ig (-beta_critic dR_var/dp_ig + balance dK/dp_ig), derivatives fixed.

    Summed over micro-batches and ranks, its gradient with respect to the classifier is that of -beta_critic R_var
    + balance K of the whole mini-batch (stage 1), K = KL(mean p || uniform) = log M + sum_g (P_g / N) log(P_g / N),
    whose derivative is (log(P_g / N) + 1) / N. Its value is not that loss (log `batch_moments.variance` for R_var).

    group_probs_BM: [B, M], softmax of the group head, differentiable. signal_B: [B], S_i, detached here.
    batch_moments: of the whole mini-batch, from a first pass with the same probabilities and signals.
    """
    gradient_BM = probability_gradient(batch_moments, signal_B).to(group_probs_BM.dtype)
    loss = -beta * torch.sum(gradient_BM * group_probs_BM)
    if balance:
        share_M = (batch_moments.mass_M / batch_moments.total).clamp(min=EMPTY_MASS)
        loss = loss + balance * torch.sum((share_M.log() + 1.0) / batch_moments.total * group_probs_BM)
    return loss
