"""What the groups look like in an iteration: numbers for the log (`diagnostics`), and alarms in words (`warnings`).

An alarm is a condition on the metrics that has to hold for some iterations in a row before it is said, and is said
again only after as many more: one odd batch is no finding, and a finding need not be repeated every iteration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gipo_mc.algorithms.association import correlation, domain_auc, mutual_information, partial_correlation
from gipo_mc.algorithms.group_inference import MEASURED_SHARE
from gipo_mc.algorithms.group_invariance import (
    GroupMoments,
    Weights,
    bounded_beta,
    group_statistics,
    moments,
    relative_weight,
)
from gipo_mc.algorithms.signal import ema
from gipo_mc.algorithms.state import Health

#: What shows whether a part of the method acts: name -> words for it, as the subject of a sentence.
SPREADS = {
    "group_variance": "R_var, the variance between the groups,",
    "kl_weights": "the spread of the KL weights",
    "penalty_weights": "the spread of the variance penalty's weights",
    "signal": "the spread of the signal S",
}
#: A part of the method is in effect off where what it is made of falls under this share of its usual size.
OFF = 1e-3
#: Iterations in a row after which that is said. The groups' difference may pass through 0 by chance in one of them.
OFF_PATIENCE = 5
_USUAL_DECAY = 0.95
REPEAT = 20  # an alarm that goes on holding is said again after so many iterations


def diagnostics(
    group_probs_BM: Tensor,
    reward_B: Tensor,
    kl_B: Tensor,
    length_B: Tensor,
    domains: Sequence[str],
    *,
    signal_B: Tensor | None = None,
    best_group: int | None = None,
    weights: Weights = "size",
    beta: float = 0.0,
    mass_floor: float = 0.0,
    cap: float = math.inf,
    length_factor_B: Tensor | float = 1.0,
) -> dict[str, float]:
    """Metrics of the groups over one rollout batch (B rows, equal on every rank); all finite.

    group_probs_BM [B, M]; raw reward_B; kl_B nats of each response; length_B tokens; domains: B known labels.
    signal_B: the S of R_var (default: reward_B). best_group: g_high, None: not known. beta, mass_floor, cap: what stage
    2 is given, for the relative weights, and length_factor_B [B] what they are multiplied by for a response's length.

    group/<g>/mass is the share of the sequences; group/<g>/{reward,kl} are p-weighted means (0 for an empty group),
    group/<g>/objective is R_g. group/entropy: mean entropy of p(.|x,y) in nats; it alone does not show collapse.
    group/explained_share: R_var / Var(S). group/p_high: mean of p_i,high, so kl_coef times it is the effective eta.
    group/{reward,length}_correlation: of p_high, also inside each domain as .../<domain>; group/reward_beyond_length:
    the partial correlation with reward at equal length. group/domain_auc and group/domain_information (nats): against
    the known domains. group/weight_{min,negative}: smallest w_i, and the share of sequences where it is negative.
    worst/group_reward: the lowest mean raw reward of a group that holds 2 % of the sequences.
    """
    probs_BM, reward_B, kl_B = (x.detach().double() for x in (group_probs_BM, reward_B, kl_B))
    signal_B = reward_B if signal_B is None else signal_B.detach().double()
    total = len(probs_BM)
    if len(domains) != total:
        raise ValueError(f"{len(domains)} domain labels for {total} sequences: one label for each is needed.")
    if not total:
        return {}

    batch = moments(*group_statistics(probs_BM, signal_B), total, weights)
    metrics = _by_group(probs_BM, reward_B, kl_B, batch)
    metrics["group/variance"] = float(batch.variance)
    metrics["group/entropy"] = float(torch.special.entr(probs_BM).sum(1).mean())
    spread = float(signal_B.var(correction=0))
    metrics["group/explained_share"] = float(batch.variance) / spread if spread > 0.0 else 0.0

    policy_beta, kept = bounded_beta(beta, batch, mass_floor=mass_floor, cap=cap)
    weight_B = relative_weight(policy_beta, kept, probs_BM, length_factor_B)
    metrics["group/weight_min"] = float(weight_B.min())
    metrics["group/weight_negative"] = float((weight_B < 0).double().mean())

    if best_group is not None:
        metrics |= _of_best_group(probs_BM[:, best_group], reward_B, length_B, domains)
    if len(set(domains)) > 1:
        metrics["group/domain_auc"] = domain_auc(probs_BM, domains)
        metrics["group/domain_information"] = mutual_information(probs_BM, domains)
    return metrics


def _by_group(probs_BM: Tensor, reward_B: Tensor, kl_B: Tensor, batch: GroupMoments) -> dict[str, float]:
    total, groups = probs_BM.shape
    mean_reward_M = moments(*group_statistics(probs_BM, reward_B), total, batch.weights).objective_M
    mean_kl_M = moments(*group_statistics(probs_BM, kl_B), total, batch.weights).objective_M
    metrics: dict[str, float] = {}
    for group in range(groups):
        metrics[f"group/{group}/mass"] = float(batch.mass_M[group]) / total
        metrics[f"group/{group}/reward"] = float(mean_reward_M[group])
        metrics[f"group/{group}/objective"] = float(batch.objective_M[group])
        metrics[f"group/{group}/kl"] = float(mean_kl_M[group])
    held = [float(r) for r, mass in zip(mean_reward_M, batch.mass_M, strict=True) if mass >= MEASURED_SHARE * total]
    metrics["worst/group_reward"] = min(held)
    return metrics


def _of_best_group(high_B: Tensor, reward_B: Tensor, length_B: Tensor, domains: Sequence[str]) -> dict[str, float]:
    """Does the probability of the best group follow reward or length, in all sequences and inside each domain?"""
    metrics = {
        "group/p_high": float(high_B.mean()),
        "group/reward_correlation": correlation(high_B, reward_B),
        "group/length_correlation": correlation(high_B, length_B),
        "group/reward_beyond_length": partial_correlation(high_B, reward_B, length_B),
    }
    names = sorted(set(domains))
    for name in names if len(names) > 1 else ():
        inside_B = torch.tensor([domain == name for domain in domains], device=high_B.device)
        metrics[f"group/reward_correlation/{name}"] = correlation(high_B[inside_B], reward_B[inside_B])
        metrics[f"group/length_correlation/{name}"] = correlation(high_B[inside_B], length_B[inside_B])
    return metrics


@dataclass(frozen=True)
class Alarm:
    """patience: iterations in a row in which `holds(metrics)` before `sentence(metrics, best_group, count)` is said.

    inferred: about what a classifier does, so not of use where groups are given.
    """

    patience: int
    holds: Callable[[Mapping[str, float]], bool]
    sentence: Callable[[Mapping[str, float], int | None, int], str]
    inferred: bool = True


def _masses(metrics: Mapping[str, float]) -> list[float]:
    found = {int(match[1]): v for name, v in metrics.items() if (match := re.fullmatch(r"group/(\d+)/mass", name))}
    return [found[group] for group in sorted(found)]


def _collapsed(metrics: Mapping[str, float]) -> bool:
    return max(_masses(metrics), default=0.0) > 0.95


def _empty(metrics: Mapping[str, float]) -> bool:
    return not _collapsed(metrics) and min(_masses(metrics), default=1.0) < 0.01


def _length_only(metrics: Mapping[str, float]) -> bool:
    return (
        abs(metrics.get("group/length_correlation", 0.0)) > 0.8
        and abs(metrics.get("group/reward_beyond_length", 0.0)) < 0.2
    )


ALARMS: dict[str, Alarm] = {
    "collapsed": Alarm(
        20,
        _collapsed,
        lambda metrics, best, count: (
            f"The inferred groups have collapsed: for {count} iterations one of them has held more than 95% of the "
            "sequences, so they separate nothing. Use algorithm.signal=reward, algorithm.signal_form=value and "
            "algorithm.weights=size, or raise algorithm.balance."
        ),
    ),
    "empty": Alarm(
        20,
        _empty,
        lambda metrics, best, count: (
            f"Group {_masses(metrics).index(min(_masses(metrics)))} is empty: for {count} iterations a group has held "
            "less than 1% of the sequences. Lower algorithm.groups, or raise algorithm.balance."
        ),
    ),
    "length_only": Alarm(
        10,
        _length_only,
        lambda metrics, best, count: (
            f"The inferred groups follow the length of responses and little else (for {count} iterations; correlation "
            f"of p_high with length {metrics['group/length_correlation']:.2f}, with reward at equal length "
            f"{metrics['group/reward_beyond_length']:.2f}). Use algorithm.group_input=prompt, or "
            "algorithm.signal_tokens=mean."
        ),
    ),
    "wrong_best": Alarm(
        5,
        lambda metrics: metrics.get("group/reward_correlation", 0.0) < -0.1,
        lambda metrics, best, count: (
            f"Group {best} is taken for the best one, but for {count} iterations its sequences have earned less "
            f"(correlation of p_high and reward {metrics['group/reward_correlation']:.2f}): the adaptive KL is holding "
            "back the wrong sequences. Use algorithm.best_group=reward, or lower algorithm.best_group_decay."
        ),
        inferred=False,
    ),
    "unlearns": Alarm(
        1,
        lambda metrics: metrics.get("group/weight_negative", 0.0) > 0.01,
        lambda metrics, best, count: (
            f"The variance penalty makes the policy un-learn {metrics['group/weight_negative']:.1%} of the sequences "
            f"(smallest relative weight {metrics['group/weight_min']:.2f}): lower algorithm.beta_policy, or set "
            "algorithm.reweight_cap between 0 and 1 with algorithm.penalty_over=tokens."
        ),
        inferred=False,
    ),
}


def count_alarms(alarms: Mapping[str, int], metrics: Mapping[str, float], inferred: bool) -> dict[str, int]:
    """Iterations in a row in which each alarm held, this one's `metrics` (of `diagnostics`) included.

    alarms: the counts before. inferred: is there a classifier? Without groups nothing is counted.
    """
    if len(_masses(metrics)) < 2:
        return {}
    return {
        name: alarms.get(name, 0) + 1 if alarm.holds(metrics) and (inferred or not alarm.inferred) else 0
        for name, alarm in ALARMS.items()
    }


def warnings(alarms: Mapping[str, int], metrics: Mapping[str, float], best_group: int | None) -> list[str]:
    """What a person should hear about the groups after this iteration, in plain words; empty when all is well.

    alarms: of `count_alarms` with the same metrics.
    """
    due = {name: count - ALARMS[name].patience for name, count in alarms.items() if count}
    return [
        ALARMS[name].sentence(metrics, best_group, alarms[name])
        for name, over in due.items()
        if over >= 0 and over % REPEAT == 0
    ]


def follow(health: Health, spreads: Mapping[str, float]) -> Health:
    """The health with the running means of `spreads` (name, of `SPREADS` -> its size in this iteration), and with the
    iterations in a row in which each was under `OFF` times its running mean. A large number counts ten times the mean
    at most.
    """
    usual = {name: mean for name, mean in health.usual.items() if name in SPREADS}
    off = {name: value < OFF * usual.get(name, 0.0) for name, value in spreads.items()}
    for name, value in spreads.items():
        usual[name] = ema(usual.get(name), min(value, 10.0 * usual.get(name, 0.0) or value), _USUAL_DECAY)
    return replace(health, usual=usual).counted(**{f"{name}_off": held for name, held in off.items()})


def off_warnings(health: Health, spreads: Mapping[str, float]) -> list[str]:
    """A sentence for each of `spreads` that has been under `OFF` times its usual size for some iterations; again only
    after `REPEAT` more. health: of `follow` with the same."""
    said = []
    for name, value in spreads.items():
        over = health.counts.get(f"{name}_off", 0) - OFF_PATIENCE
        if over >= 0 and over % REPEAT == 0:
            said.append(
                f"The method is in effect off: {SPREADS[name]} has been under a thousandth of its usual size for "
                f"{over + OFF_PATIENCE} iterations (now {value:.2g}, usually {health.usual[name]:.2g}). Either all "
                "rewards are alike, or the groups have collapsed, or a reward far out of the others has blown up a "
                "running scale: see reward/std, group/*/mass, and samples.jsonl."
            )
    return said
