"""rollout + scores -> experience: group probabilities, group-weighted KL in the reward, advantages, and the signal."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from gipo_mc.algorithms import group_dro, signal
from gipo_mc.algorithms.advantages import leave_one_out, normalise_reward, per_token, prompt_normalised, whiten
from gipo_mc.algorithms.group_inference import GroupState, normalised_signal, track_reward, update_best_group
from gipo_mc.algorithms.group_invariance import group_statistics, moments
from gipo_mc.algorithms.group_source import GroupSource
from gipo_mc.algorithms.kl import controlled, kl_weights
from gipo_mc.config import Config
from gipo_mc.ops import shape_and_gae
from gipo_mc.types import Experience, Rollout, Scores


def shape(
    rollout: Rollout, scores: Scores, state: GroupState, config: Config, source: GroupSource
) -> tuple[Experience, GroupState]:
    """The experience of an iteration, and what the groups remember of it.

    r_t = -eta_i KL_t + [t = T_i] score_i with eta_i = kl_coef p_i,high for adaptive KL (Zheng et al., arXiv
    2310.11971), or without the KL where it stands in the loss. source: where the p_ig come from. Every rank holds the
    whole rollout and computes the same.
    """
    settings = config.algorithm
    length_B = rollout.sequences.response_length_B
    state = track_reward(state, scores.reward_B, settings.signal_decay)
    probs_BM = source(scores.group_probs_BM, scores.reward_B, rollout.domain_B, state.reward_mean)
    if settings.best_group == "reward":
        state = update_best_group(state, probs_BM, scores.reward_B, settings.best_group_decay)
    kl_coef = settings.kl_coef if state.kl_coef is None else state.kl_coef
    weight_B = kl_weights(kl_coef, probs_BM, state.best_group, settings.kl_penalty)
    paid_B = weight_B if settings.kl_in == "reward" else weight_B.new_zeros(len(weight_B))

    score_B = _score(scores.reward_B, state, config)
    shaped = shape_and_gae(
        scores.behaviour_logp_BT,
        scores.reference_logp_BT,
        scores.values_BT,
        score_B,
        length_B,
        paid_B,
        gamma=settings.gamma,
        lam=settings.lam,
        kl_estimator=settings.kl_estimator,
    )
    if settings.kl_target:
        state = replace(state, kl_coef=controlled(kl_coef, float(shaped.kl_B.mean()), settings.kl_target))
    advantage_BT, sums = shaped.advantage_BT, (shaped.count, shaped.sum, shaped.sum_sq)
    if settings.advantage != "gae":
        compare = leave_one_out if settings.advantage == "rloo" else prompt_normalised
        whole_B = compare(score_B - paid_B * shaped.kl_B, config.rollout.samples_per_prompt)
        advantage_BT, sums = per_token(whole_B, length_B, rollout.times)
    if settings.whiten_advantages:
        advantage_BT = whiten(advantage_BT, length_B, *sums)

    signal_B, signal_BT, state = _signal(scores, shaped.return_BT, advantage_BT, length_B, state, config)
    if (
        settings.best_group == "objective"
    ):  # R_g needs the KL weights of this iteration, so it decides on the next one's
        state = update_best_group(state, probs_BM, signal_B, settings.best_group_decay)
    if settings.penalty == "group_dro":
        objective = moments(*group_statistics(probs_BM, signal_B), len(signal_B), settings.weights)
        weight_M = group_dro.update_weights(state.weight_M, objective, settings.dro_step, settings.mass_floor)
        state = replace(state, weight_M=tuple(weight_M))
        factor_B = group_dro.sequence_weights(weight_M, objective, probs_BM, settings.mass_floor)
        advantage_BT = advantage_BT * factor_B[:, None]
    experience = Experience(
        rollout=rollout,
        scores=scores,
        group_probs_BM=probs_BM,
        advantage_BT=advantage_BT,
        return_BT=shaped.return_BT,
        kl_B=shaped.kl_B,
        kl_weight_B=weight_B,
        signal_B=signal_B,
        signal_BT=signal_BT,
    )
    return experience, state


def _score(reward_B: Tensor, state: GroupState, config: Config) -> Tensor:
    """What the policy is paid at the end of a response: the reward, normalised and clipped by option."""
    settings = config.algorithm
    if settings.normalize_reward:
        assert state.reward_mean is not None and state.reward_std is not None
        return normalise_reward(reward_B, state.reward_mean, state.reward_std, settings.reward_clip)
    return reward_B.clamp(-settings.reward_clip, settings.reward_clip) if settings.reward_clip else reward_B


def _signal(
    scores: Scores, return_BT: Tensor, advantage_BT: Tensor, length_B: Tensor, state: GroupState, config: Config
) -> tuple[Tensor, Tensor | None, GroupState]:
    """(S_B, X_BT where S = agg log pi X, state) as `algorithms.signal` defines them."""
    settings = config.algorithm
    token_BT: Tensor | None = signal.token_signal(settings.signal, scores.reward_B, return_BT, advantage_BT)
    assert token_BT is not None
    if settings.signal_form == "log_prob":
        signal_B = signal.sequence_signal(token_BT, length_B, settings.signal_tokens, scores.behaviour_logp_BT)
    elif settings.signal == "reward" and settings.signal_tokens == "mean":
        signal_B, token_BT = scores.reward_B, None  # a mean of equal numbers, without its rounding
    else:
        signal_B, token_BT = signal.sequence_signal(token_BT, length_B, settings.signal_tokens), None
    if settings.signal_normalize:
        signal_B, state = normalised_signal(signal_B, state, settings.signal_decay)
        if token_BT is not None:
            assert state.signal_std is not None
            token_BT = token_BT / max(state.signal_std, signal.STD_FLOOR)
    return signal_B, token_BT, state
