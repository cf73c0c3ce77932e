"""rollout + scores -> experience: classifier-weighted KL in the reward, GAE, whitening, and the classifier's signal."""

from __future__ import annotations

import torch

from gipo_mc.algorithms.advantages import normalise_reward, whiten
from gipo_mc.algorithms.group_inference import GroupState, normalised_signal, update_best_group
from gipo_mc.algorithms.kl import kl_weights
from gipo_mc.config import Config
from gipo_mc.ops import shape_and_gae
from gipo_mc.types import Experience, Rollout, Scores


def shape(rollout: Rollout, scores: Scores, state: GroupState, config: Config) -> tuple[Experience, GroupState]:
    """The experience of an iteration, and what group inference remembers of it.

    r_t = -eta_i KL_t + [t = T_i] score_i with eta_i = kl_coef p_i,high for adaptive KL (Zheng et al., arXiv
    2310.11971), kl_coef for fixed KL, 0 without. Every rank holds the whole rollout and computes the same.
    """
    settings = config.algorithm
    length_B = rollout.sequences.response_length_B
    signal_B, state = normalised_signal(scores.reward_B, state, settings.signal_decay)
    state = update_best_group(state, scores.group_probs_BM, scores.reward_B, settings.best_group_decay)
    score_B = scores.reward_B
    if settings.normalize_reward:
        assert state.reward_mean is not None and state.reward_std is not None
        score_B = normalise_reward(score_B, state.reward_mean, state.reward_std, settings.reward_clip)
    elif settings.reward_clip:
        score_B = score_B.clamp(-settings.reward_clip, settings.reward_clip)
    weight_B = kl_weights(
        0.0 if settings.name == "ppo_no_kl" else settings.kl_coef,
        scores.group_probs_BM,
        state.best_group,
        adaptive=settings.name == "gi_ppo" and settings.adaptive_kl,
    )
    shaped = shape_and_gae(
        scores.behaviour_logp_BT,
        scores.reference_logp_BT,
        scores.values_BT,
        score_B,
        length_B,
        weight_B,
        gamma=settings.gamma,
        lam=settings.lam,
        kl_estimator=settings.kl_estimator,
    )
    advantage_BT = shaped.advantage_BT
    if settings.whiten_advantages:
        advantage_BT = whiten(advantage_BT, length_B, shaped.count, shaped.sum, shaped.sum_sq)
    if settings.signal == "log_prob_advantage":
        # The paper to the letter: S_i = sum_t log pi(a_t|s_t) A_t of the behaviour policy.
        signal_B = torch.where(
            torch.arange(advantage_BT.shape[1], device=length_B.device) < length_B[:, None],
            scores.behaviour_logp_BT * advantage_BT,
            0.0,
        ).sum(dim=1)
    experience = Experience(
        rollout=rollout,
        scores=scores,
        advantage_BT=advantage_BT,
        return_BT=shaped.return_BT,
        kl_B=shaped.kl_B,
        kl_weight_B=weight_B,
        signal_B=signal_B,
    )
    return experience, state
