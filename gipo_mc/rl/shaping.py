"""rollout + model outputs -> experience: group probabilities, group-weighted KL in the reward, advantages, signal."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from gipo_mc.algorithms import group_dro, signal
from gipo_mc.algorithms.advantages import (
    leave_one_out,
    normalise_reward,
    per_token,
    prompt_normalised,
    saturated,
    whiten,
)
from gipo_mc.algorithms.group_inference import update_best_group
from gipo_mc.algorithms.group_invariance import group_statistics, moments
from gipo_mc.algorithms.group_source import GroupSource
from gipo_mc.algorithms.kl import controlled, kl_weights
from gipo_mc.algorithms.state import RLState, normalised_signal, track_reward
from gipo_mc.config import AlgorithmConfig, Config
from gipo_mc.ops import ObjectiveInputs, ShapedAdvantages, SignalForm, shape_and_gae
from gipo_mc.rl.experience import Experience, ModelOutputs
from gipo_mc.types import Rollout


def shape(
    rollout: Rollout, outputs: ModelOutputs, state: RLState, config: Config, source: GroupSource
) -> tuple[Experience, RLState]:
    """The experience of an iteration, and the state after it.

    r_t = -eta_i KL_t + [t = T_i] r_i with eta_i = kl_coef p_i,high for adaptive KL (Zheng et al., arXiv 2310.11971), or
    without the KL where it stands in the loss. source: where the p_ig come from. Every rank holds the whole rollout and
    computes the same.
    """
    settings, length_B = config.algorithm, rollout.sequences.response_length_B
    state = track_reward(state, outputs.reward_B, settings.signal_decay)
    compared_B, mean = _compared(outputs, state, settings)
    probs_BM = source(outputs.group_probs_BM, compared_B, rollout.domain_B, mean)
    if settings.best_group != "objective":
        ranked_B = outputs.gain_B if settings.best_group == "gain" else outputs.reward_B
        state = _rank_groups(state, probs_BM, ranked_B, settings)
    kl_coef = settings.kl_coef if state.kl_coef is None else state.kl_coef
    kl_weight_B = kl_weights(kl_coef, probs_BM, state.groups.best_group, settings.kl_penalty)
    shaped, advantage_BT = _advantages(rollout, outputs, kl_weight_B, state, config)
    if settings.kl_target:
        state = replace(state, kl_coef=controlled(kl_coef, float(shaped.kl_B.mean()), settings.kl_target))
    signal_B, weight_BT, state = _signal(outputs, shaped.return_BT, advantage_BT, length_B, state, settings)
    if settings.best_group == "objective":
        # R_g needs the KL weights of this iteration, so it decides on the next one's.
        state = _rank_groups(state, probs_BM, signal_B, settings)
    policy_advantage_BT = advantage_BT
    if settings.penalty == "group_dro":
        factor_B, state = _group_dro(signal_B, probs_BM, state, settings)
        policy_advantage_BT = advantage_BT * factor_B[:, None]
    inputs = ObjectiveInputs(
        outputs.behaviour_logp_BT,
        outputs.reference_logp_BT,
        policy_advantage_BT,
        length_B,
        probs_BM,
        signal_B,
        kl_weight_B,
    )
    experience = Experience(
        rollout=rollout,
        outputs=outputs,
        inputs=inputs,
        return_BT=shaped.return_BT,
        kl_B=shaped.kl_B,
        signal_form=_SIGNAL_FORMS[settings.signal_form, settings.signal_tokens],
        # Where log pi is weighted by the very advantage that PPO uses, op B needs no second pass.
        signal_weight_BT=None if _weighted_by_the_advantage(settings) else weight_BT,
    )
    return experience, state


def _compared(outputs: ModelOutputs, state: RLState, settings: AlgorithmConfig) -> tuple[Tensor, float | None]:
    """(what a threshold of groups compares, [B], with what): rewards with their running mean, gains, which begin at 0,
    with the mean of the batch."""
    if settings.groups_from == "gain":
        return outputs.gain_B, float(outputs.gain_B.double().mean())
    return outputs.reward_B, state.reward_mean


#: How S_i depends on the policy, by algorithm.signal_form and signal_tokens.
_SIGNAL_FORMS: dict[tuple[str, str], SignalForm] = {
    ("value", "mean"): "ratio",
    ("value", "sum"): "ratio",
    ("log_prob", "mean"): "log_prob_mean",
    ("log_prob", "sum"): "log_prob",
}


def _weighted_by_the_advantage(settings: AlgorithmConfig) -> bool:
    return settings.signal == "advantage" and not settings.signal_normalize and settings.penalty != "group_dro"


def _rank_groups(state: RLState, probs_BM: Tensor, value_B: Tensor, settings: AlgorithmConfig) -> RLState:
    return replace(state, groups=update_best_group(state.groups, probs_BM, value_B, settings.best_group_decay))


def _advantages(
    rollout: Rollout, outputs: ModelOutputs, kl_weight_B: Tensor, state: RLState, config: Config
) -> tuple[ShapedAdvantages, Tensor]:
    """(op C's outputs, the advantages [B, T]: GAE, or from the other samples of the prompt; whitened by option)."""
    settings, length_B = config.algorithm, rollout.sequences.response_length_B
    paid_B = kl_weight_B if settings.kl_in == "reward" else kl_weight_B.new_zeros(len(kl_weight_B))
    reward_B = _paid_reward(outputs, state, settings)
    shaped = shape_and_gae(
        outputs.behaviour_logp_BT,
        outputs.reference_logp_BT,
        outputs.values_BT,
        reward_B,
        length_B,
        paid_B,
        gamma=settings.gamma,
        lam=settings.lam,
        kl_estimator=settings.kl_estimator,
    )
    advantage_BT, sums = shaped.advantage_BT, (shaped.count, shaped.sum, shaped.sum_sq)
    if settings.advantage != "gae":
        samples, penalty_B = config.rollout.samples_per_prompt, paid_B * shaped.kl_B
        if settings.advantage == "rloo":
            whole_B = leave_one_out(reward_B - penalty_B, samples)
        else:
            whole_B = prompt_normalised(reward_B, samples, penalty_B)
        advantage_BT, sums = per_token(whole_B, length_B, rollout.width)
    if settings.whiten_advantages:
        advantage_BT = whiten(advantage_BT, length_B, *sums)
    return shaped, advantage_BT


def _paid_reward(outputs: ModelOutputs, state: RLState, settings: AlgorithmConfig) -> Tensor:
    """The reward at the end of a response: as it is, normalised or saturated, and clipped, by option."""
    if settings.normalize_reward:
        assert state.reward_mean is not None and state.reward_std is not None
        return normalise_reward(outputs.reward_B, state.reward_mean, state.reward_std, settings.reward_clip)
    reward_B = outputs.reward_B
    if settings.reward_transform == "log_sigmoid":
        reward_B = saturated(outputs.gain_B, settings.reward_scale)
    return reward_B.clamp(-settings.reward_clip, settings.reward_clip) if settings.reward_clip else reward_B


def _group_dro(signal_B: Tensor, probs_BM: Tensor, state: RLState, settings: AlgorithmConfig) -> tuple[Tensor, RLState]:
    """(weight of each sequence's advantage [B], the state with this iteration's weights of the groups)."""
    objective = moments(*group_statistics(probs_BM, signal_B), len(signal_B), settings.weights)
    weight_M = group_dro.update_weights(state.dro_weight_M, objective, settings.dro_step, settings.mass_floor)
    factor_B = group_dro.sequence_weights(weight_M, objective, probs_BM, settings.mass_floor)
    return factor_B, replace(state, dro_weight_M=tuple(weight_M))


def _signal(
    outputs: ModelOutputs,
    return_BT: Tensor,
    advantage_BT: Tensor,
    length_B: Tensor,
    state: RLState,
    settings: AlgorithmConfig,
) -> tuple[Tensor, Tensor | None, RLState]:
    """(S_B, X_BT where S = agg log pi X, state) as `algorithms.signal` defines them."""
    whole_B = _whole_signal(outputs, settings)
    token_BT: Tensor | None = signal.token_signal(settings.signal, whole_B, return_BT, advantage_BT)
    assert token_BT is not None
    if settings.signal_form == "log_prob":
        signal_B = signal.sequence_signal(token_BT, length_B, settings.signal_tokens, outputs.behaviour_logp_BT)
    elif settings.signal not in ("return", "advantage") and settings.signal_tokens == "mean":
        signal_B, token_BT = whole_B, None  # a mean of equal numbers, without its rounding
    else:
        signal_B, token_BT = signal.sequence_signal(token_BT, length_B, settings.signal_tokens), None
    if settings.signal_normalize:
        signal_B, state = normalised_signal(signal_B, state, settings.signal_decay)
        if token_BT is not None:
            assert state.signal_std is not None
            token_BT = token_BT / max(state.signal_std, signal.STD_FLOOR)
    return signal_B, token_BT, state


def _whole_signal(outputs: ModelOutputs, settings: AlgorithmConfig) -> Tensor:
    """What the signal says of a whole response, [B]; the reward where it speaks of tokens."""
    if settings.signal == "disagreement":
        assert outputs.disagreement_B is not None, "the configuration asks for several reward models"
        return outputs.disagreement_B
    return outputs.gain_B if settings.signal == "gain" else outputs.reward_B
