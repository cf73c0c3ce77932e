"""Inferring groups: the classifier's signal and loss, which group is best, and what is remembered between iterations.

Source: Zheng et al., arXiv 2310.11971 (stage 1: the classifier maximises R_var; adaptive KL needs the best group).
Two departures from its letter, both found necessary: the signal is the normalised reward of the sequence, because the
variance of raw sum_t log pi A collapses into one group; and the best group is the one whose running mean reward is
highest, because R_g of log pi A < 0 points to the wrong one. The paper's signal is still served: `classifier_loss`
takes any score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from gipo_mc.algorithms.association import correlation, domain_auc, mutual_information
from gipo_mc.algorithms.group_invariance import (
    GroupMoments,
    Weights,
    bounded_beta,
    group_statistics,
    moments,
    probability_gradient,
    relative_weight,
)
from gipo_mc.errors import CheckpointError

MASS_FLOOR = 0.02  # a group with a smaller share of the sequences is neither measured nor chosen as the best
COLLAPSE_MASS = 0.05  # the alarm: smallest share under this for COLLAPSE_STEPS iterations
COLLAPSE_STEPS = 20
NEGATIVE_WEIGHT_SHARE = 0.01  # the alarm: more than this share of the sequences has a negative relative weight
_STD_FLOOR = 1e-8


@dataclass(frozen=True)
class GroupState:
    """What group inference remembers between iterations: plain numbers, equal on every rank, saved in checkpoints.

    reward_M: running mean of the raw reward by group, None where a group was never measured.
    reward_mean, reward_std: running mean and standard deviation of the raw reward; None before the first batch.
    best_group: g_high, None before the first batch. flips: how often it changed.
    thin_steps: iterations in a row in which the smallest group held less than COLLAPSE_MASS of the sequences.
    steps: iterations seen by `update_best_group`.
    """

    reward_M: tuple[float | None, ...]
    reward_mean: float | None = None
    reward_std: float | None = None
    best_group: int | None = None
    flips: int = 0
    thin_steps: int = 0
    steps: int = 0

    @classmethod
    def initial(cls, groups: int) -> GroupState:
        """The state before the first iteration, with `groups` = M inferred groups."""
        return cls(reward_M=(None,) * groups)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None: what JSON can hold, without loss."""
        return {**asdict(self), "reward_M": list(self.reward_M)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> GroupState:
        """The state that `to_dict` gave. Raises CheckpointError when a field is missing or unknown."""
        names = {field.name for field in fields(cls)}
        if set(saved) != names:
            odd = ", ".join(sorted(names ^ set(saved)))
            raise CheckpointError(
                f"The saved group state has missing or unknown fields ({odd}): it was written by another version. "
                "Use that version, or start a new run from the exported weights."
            )
        return cls(**{**saved, "reward_M": tuple(saved["reward_M"])})


def _ema(old: float | None, new: float, decay: float) -> float:
    """Exponential moving average that begins with the first value instead of a bias towards 0."""
    return new if old is None else decay * old + (1.0 - decay) * new


def normalised_signal(reward_B: Tensor, state: GroupState, decay: float) -> tuple[Tensor, GroupState]:
    """(S_B, state): S_i = (reward_i - batch mean) / running std, the classifier's signal and the value part of S.

    reward_B: [B] raw rewards of the whole rollout batch, finite. decay: of the running mean and std (which include
    this batch). R_var does not depend on the centre; the scale makes beta mean the same at every reward scale. The std
    runs, rather than being the batch's, so that a batch whose rewards hardly differ is not blown up.
    Equal rewards give 0. An empty batch changes nothing.
    """
    if not reward_B.numel():
        return reward_B.clone(), state
    reward64_B = reward_B.detach().double()
    mean, std = reward64_B.mean(), float(reward64_B.std(correction=0))
    state = replace(
        state,
        reward_mean=_ema(state.reward_mean, float(mean), decay),
        reward_std=_ema(state.reward_std, std, decay),
    )
    assert state.reward_std is not None
    signal_B = (reward64_B - mean) / max(state.reward_std, _STD_FLOOR)
    return signal_B.to(reward_B.dtype), state


def update_best_group(
    state: GroupState, group_probs_BM: Tensor, reward_B: Tensor, decay: float, mass_floor: float = MASS_FLOOR
) -> GroupState:
    """State with this iteration's rewards by group and g_high = argmax_g EMA(sum_i p_ig r_i / P_g).

    group_probs_BM [B, M] and raw reward_B [B] (finite) of the whole rollout batch, equal on every rank.
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
        thin_steps=state.thin_steps + 1 if min(share_M) < COLLAPSE_MASS else 0,
        steps=state.steps + 1,
    )


def classifier_loss_terms(group_probs_BM: Tensor, score_B: Tensor, batch_moments: GroupMoments, beta: float) -> Tensor:
    """Scalar loss of a micro-batch, -beta_critic sum_ig (dR_var/dp_ig) p_ig with the derivative fixed (stage 1).

    Summed over micro-batches and ranks, its gradient with respect to the classifier is that of -beta_critic R_var of
    the whole mini-batch; its value is not -beta R_var (log `batch_moments.variance` for that).

    group_probs_BM: [B, M], softmax of the group head, differentiable. score_B: [B], S_i, detached here.
    batch_moments: of the whole mini-batch, from a first pass with the same probabilities and scores.
    """
    gradient_BM = probability_gradient(batch_moments, score_B).to(group_probs_BM.dtype)
    return -beta * torch.sum(gradient_BM * group_probs_BM)


def diagnostics(
    group_probs_BM: Tensor,
    reward_B: Tensor,
    kl_B: Tensor,
    length_B: Tensor,
    domains: Sequence[str],
    *,
    score_B: Tensor | None = None,
    best_group: int | None = None,
    weights: Weights = "size",
    beta: float = 0.0,
    mass_floor: float = 0.0,
    cap: float = math.inf,
) -> dict[str, float]:
    """Metrics of the inferred groups over one rollout batch (B rows, equal on every rank); all finite.

    group_probs_BM [B, M]; raw reward_B; kl_B nats of each response; length_B tokens; domains: B known labels.
    score_B: the S of R_var (default: reward_B). best_group: g_high, None: not known. beta, mass_floor, cap: what stage
    2 is given, for the relative weights.

    group/<g>/mass is the share of the sequences; group/<g>/{reward,kl} are p-weighted means (0 for an empty group),
    group/<g>/objective is R_g. group/entropy: mean entropy of p(.|x,y) in nats; it alone does not show collapse.
    group/explained_share: R_var / Var(S). group/p_high: mean of p_i,high, so kl_coef times it is the effective eta.
    group/{reward,length}_correlation: of p_high, also inside each domain as .../<domain>. group/domain_auc and
    group/domain_information (nats): against the known domains. group/weight_{min,negative}: smallest N c_i, and the
    share of sequences where it is negative.
    """
    probs_BM, reward_B, kl_B = (x.detach().double() for x in (group_probs_BM, reward_B, kl_B))
    score_B = reward_B if score_B is None else score_B.detach().double()
    total, groups = probs_BM.shape
    if len(domains) != total:
        raise ValueError(f"{len(domains)} domain labels for {total} sequences: one label for each is needed.")
    if not total:
        return {}

    batch = moments(*group_statistics(probs_BM, score_B), total, weights)
    mean_reward_M = moments(*group_statistics(probs_BM, reward_B), total, weights).objective_M
    mean_kl_M = moments(*group_statistics(probs_BM, kl_B), total, weights).objective_M
    metrics: dict[str, float] = {}
    for group in range(groups):
        metrics[f"group/{group}/mass"] = float(batch.mass_M[group]) / total
        metrics[f"group/{group}/reward"] = float(mean_reward_M[group])
        metrics[f"group/{group}/objective"] = float(batch.objective_M[group])
        metrics[f"group/{group}/kl"] = float(mean_kl_M[group])
    metrics["group/variance"] = float(batch.variance)
    metrics["group/entropy"] = float(torch.special.entr(probs_BM).sum(1).mean())
    spread = float(score_B.var(correction=0))
    metrics["group/explained_share"] = float(batch.variance) / spread if spread > 0.0 else 0.0

    policy_beta, kept = bounded_beta(beta, batch, mass_floor=mass_floor, cap=cap)
    weight_B = relative_weight(policy_beta, kept, probs_BM)
    metrics["group/weight_min"] = float(weight_B.min())
    metrics["group/weight_negative"] = float((weight_B < 0).double().mean())

    if best_group is not None:
        high_B = probs_BM[:, best_group]
        metrics["group/p_high"] = float(high_B.mean())
        metrics["group/reward_correlation"] = correlation(high_B, reward_B)
        metrics["group/length_correlation"] = correlation(high_B, length_B)
    names = sorted(set(domains))
    if len(names) > 1:
        metrics["group/domain_auc"] = domain_auc(probs_BM, domains)
        metrics["group/domain_information"] = mutual_information(probs_BM, domains)
        for name in names if best_group is not None else ():
            inside_B = torch.tensor([domain == name for domain in domains], device=probs_BM.device)
            metrics[f"group/reward_correlation/{name}"] = correlation(high_B[inside_B], reward_B[inside_B])
            metrics[f"group/length_correlation/{name}"] = correlation(high_B[inside_B], length_B[inside_B])
    return metrics


def warnings(metrics: Mapping[str, float], state: GroupState) -> list[str]:
    """What a person should hear about the groups after this iteration, in plain words; empty when all is well.

    metrics: of `diagnostics`; state: after `update_best_group`. With one group there is nothing to warn of.
    """
    if len(state.reward_M) < 2:
        return []
    said = []
    if state.thin_steps >= COLLAPSE_STEPS:
        said.append(
            f"The inferred groups have collapsed: for {state.thin_steps} iterations the smallest group has held less "
            f"than {COLLAPSE_MASS:.0%} of the sequences, so they separate nothing. Use algorithm.signal=reward and "
            "algorithm.weights=size, or lower critic.lr."
        )
    correlated = metrics.get("group/reward_correlation", 0.0)
    if correlated < 0.0:
        said.append(
            f"Group {state.best_group} is taken for the best one, but in this batch its sequences earn less "
            f"(correlation of p_high and reward {correlated:.2f}): the adaptive KL is holding back the "
            "wrong sequences. If it stays so, lower algorithm.best_group_decay."
        )
    negative = metrics.get("group/weight_negative", 0.0)
    if negative > NEGATIVE_WEIGHT_SHARE:
        said.append(
            f"The variance penalty makes the policy un-learn {negative:.1%} of the sequences (smallest relative weight "
            f"{metrics['group/weight_min']:.2f}): lower algorithm.beta_policy, or set algorithm.reweight_cap below 1."
        )
    return said
