"""Inferring groups: the classifier's loss, which group is best, and what is remembered between iterations.

Source: Zheng et al., arXiv 2310.11971 (stage 1: the classifier maximises R_var; adaptive KL needs the best group).
Two defaults depart from its letter, both found necessary: the signal is the normalised reward of the sequence
(`signal`), because the variance of raw sum_t log pi A collapses into one group; and the best group is the one whose
running mean reward is highest, because R_g of log pi A < 0 points to the wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from gipo_mc.algorithms.group_invariance import EMPTY_MASS, GroupMoments, probability_gradient
from gipo_mc.algorithms.signal import normalised, running_std
from gipo_mc.errors import CheckpointError

MASS_FLOOR = 0.02  # a group with a smaller share of the sequences is neither measured nor chosen as the best


@dataclass(frozen=True)
class GroupState:
    """What group inference remembers between iterations: plain numbers, equal on every rank, saved in checkpoints.

    reward_M: running mean by group of what picks the best (the raw reward, or R_g), None where never measured.
    weight_M: q_g of group-DRO.
    reward_mean, reward_std: running mean and standard deviation of the raw reward; None before the first batch.
    signal_std: running standard deviation of the signal S.
    kl_coef: eta where it follows a target KL, None where it is constant or before the first batch.
    best_group: g_high, None before the first batch. flips: how often it changed.
    alarms: alarm -> iterations in a row in which it held (`group_alarms`).
    steps: iterations seen by `update_best_group`.
    """

    reward_M: tuple[float | None, ...]
    weight_M: tuple[float, ...] = ()
    reward_mean: float | None = None
    reward_std: float | None = None
    signal_std: float | None = None
    kl_coef: float | None = None
    best_group: int | None = None
    flips: int = 0
    alarms: Mapping[str, int] = field(default_factory=dict)
    steps: int = 0

    @classmethod
    def initial(cls, groups: int) -> GroupState:
        """The state before the first iteration, with `groups` = M inferred groups."""
        return cls(reward_M=(None,) * groups, weight_M=(1.0 / groups,) * groups)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None: what JSON can hold, without loss."""
        return {**asdict(self), "reward_M": list(self.reward_M), "weight_M": list(self.weight_M)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> GroupState:
        """The state that `to_dict` gave. Raises CheckpointError when a field is missing or unknown."""
        names = {one.name for one in fields(cls)}
        if set(saved) != names:
            odd = ", ".join(sorted(names ^ set(saved)))
            raise CheckpointError(
                f"The saved group state has missing or unknown fields ({odd}): it was written by another version. "
                "Use that version, or start a new run from the exported weights."
            )
        return cls(**{**saved, "reward_M": tuple(saved["reward_M"]), "weight_M": tuple(saved["weight_M"])})


def _ema(old: float | None, new: float, decay: float) -> float:
    """Exponential moving average that begins with the first value instead of a bias towards 0."""
    return new if old is None else decay * old + (1.0 - decay) * new


def track_reward(state: GroupState, reward_B: Tensor, decay: float) -> GroupState:
    """State with the running mean and standard deviation of the raw reward, this batch included.

    reward_B: [B] of the whole rollout batch, finite. An empty batch changes nothing.
    """
    if not reward_B.numel():
        return state
    mean = float(reward_B.detach().double().mean())
    return replace(
        state,
        reward_mean=_ema(state.reward_mean, mean, decay),
        reward_std=running_std(state.reward_std, reward_B, decay),
    )


def normalised_signal(signal_B: Tensor, state: GroupState, decay: float) -> tuple[Tensor, GroupState]:
    """(S', state): the signal over its running standard deviation, centred; see `signal.normalised`. [B]."""
    state = replace(state, signal_std=running_std(state.signal_std, signal_B, decay))
    assert state.signal_std is not None
    return normalised(signal_B, state.signal_std), state


def update_best_group(
    state: GroupState, group_probs_BM: Tensor, reward_B: Tensor, decay: float, mass_floor: float = MASS_FLOOR
) -> GroupState:
    """State with this iteration's rewards by group and g_high = argmax_g EMA(sum_i p_ig r_i / P_g).

    group_probs_BM [B, M] and reward_B [B] (finite; S instead of the reward for the paper's choice by R_g) of the whole
    rollout batch, equal on every rank.
    Groups that hold less than `mass_floor` of the sequences are neither updated nor chosen, so an empty group never
    is. On a tie the present best group stays.
    """
    if group_probs_BM.shape[1] != len(state.reward_M):
        raise ValueError(
            f"group_probs_BM has {group_probs_BM.shape[1]} groups, the group state {len(state.reward_M)}: "
            "algorithm.groups must be what the state was made with."
        )
    if not len(reward_B):
        return state
    probs_BM, reward64_B = group_probs_BM.detach().double(), reward_B.detach().double()
    mass_M = probs_BM.sum(0).tolist()
    weighted_M = (probs_BM * reward64_B.unsqueeze(1)).sum(0).tolist()
    share_M = [mass / len(reward_B) for mass in mass_M]
    reward_M = tuple(
        _ema(old, weighted / mass, decay) if share >= mass_floor and mass > 0.0 else old
        for old, weighted, mass, share in zip(state.reward_M, weighted_M, mass_M, share_M, strict=True)
    )
    candidates = [
        (reward, group == state.best_group, -group)
        for group, (reward, share) in enumerate(zip(reward_M, share_M, strict=True))
        if reward is not None and share >= mass_floor and share > 0.0
    ]
    best = -max(candidates)[2] if candidates else state.best_group
    return replace(
        state,
        reward_M=reward_M,
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
