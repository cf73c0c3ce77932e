"""What an RL iteration logs: the metrics of the contract, samples, and checks that end in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.advantages import response_mask
from gipo_mc.algorithms.distribution import quantiles, skewness
from gipo_mc.algorithms.group_diagnostics import diagnostics
from gipo_mc.algorithms.group_invariance import beta_at, length_factor
from gipo_mc.algorithms.state import Health, RLState
from gipo_mc.config import Config
from gipo_mc.errors import NumericsError
from gipo_mc.models.readout import check_starts_as_reference
from gipo_mc.rl.experience import Experience
from gipo_mc.rl.hacking.metrics import Looks, domain_rows, response_metrics
from gipo_mc.rl.learned.signals import learned_metrics
from gipo_mc.rl.rewards import responses
from gipo_mc.rl.sifting import Sifted
from gipo_mc.types import Prompt

#: Quantiles of the rewards that are logged.
QUANTILES = {"reward/p01": 0.01, "reward/p10": 0.1, "reward/p50": 0.5, "reward/p90": 0.9, "reward/p99": 0.99}
#: Largest difference of log-probs between sampler and training forward that is rounding; more is said in words.
SAMPLER_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
#: Iterations in a row in which every optimizer step was skipped, or the policy left itself, before the run stops.
PATIENCE = 3
#: KL to the behaviour policy inside an iteration, in nats a token, of a policy that denies what it has just said; PPO's
#: clip keeps it under 0.1.
_LEFT = 10.0


def by_domain(values_B: Tensor, domains: Sequence[str], prefix: str) -> dict[str, float]:
    """Mean of `values_B` [B] in each domain, under "<prefix>/domain/<name>"."""
    return {f"{prefix}/domain/{name}": float(values_B[rows].mean()) for name, rows in domain_rows(domains).items()}


def worst_domain(
    values_B: Tensor, domains: Sequence[str], name: str, trained: Collection[str] = ()
) -> dict[str, float]:
    """The lowest mean of a domain, under `name`; nothing where there is one domain. trained: the domains of the
    training prompts, which alone count; where none of them is among `domains` all do."""
    rows = domain_rows(domains)
    means = [float(values_B[rows[domain]].mean()) for domain in [key for key in rows if key in trained] or rows]
    return {name: min(means)} if len(means) > 1 else {}


def tail(reward_B: Tensor, domains: Sequence[str]) -> dict[str, float]:
    """The long tail of the rewards [B]: the quantiles "reward/p01" to "reward/p99", and "reward/skew" (below 0: few
    rewards far under the others), whole and by domain."""
    metrics = dict(zip(QUANTILES, quantiles(reward_B, list(QUANTILES.values())), strict=True))
    metrics["reward/skew"] = skewness(reward_B)
    for name, rows in domain_rows(domains).items():
        metrics[f"reward/skew/domain/{name}"] = skewness(reward_B[rows])
    return metrics


def iteration_metrics(
    experience: Experience, state: RLState, config: Config, step: int, seen: Looks
) -> dict[str, float]:
    """Metrics of an iteration's rollout batch. step: iterations finished before it. seen: `looks` of its responses."""
    rollout, outputs, settings = experience.rollout, experience.outputs, config.algorithm
    length_B = rollout.sequences.response_length_B
    mask_BT = response_mask(length_B, rollout.width)
    tokens = max(int(length_B.sum()), 1)
    difference_BT = (rollout.sampler_logp_BT - outputs.behaviour_logp_BT).abs()
    metrics = {
        "reward/mean": float(outputs.reward_B.mean()),
        "reward/std": float(outputs.reward_B.std(correction=0)),
        "reward/min": float(outputs.reward_B.min()),
        "reward/max": float(outputs.reward_B.max()),
        **by_domain(outputs.reward_B, rollout.domain_B, "reward"),
        **tail(outputs.reward_B, rollout.domain_B),
        **{f"reward/part/{name}": float(part_B.mean()) for name, part_B in outputs.reward_parts.items()},
        "kl/mean": float(experience.kl_B.mean()),
        "kl/per_token": float(experience.kl_B.sum()) / tokens,
        "kl/weighted": float((experience.inputs.kl_weight_B * experience.kl_B).mean()),
        **by_domain(experience.kl_B, rollout.domain_B, "kl"),
        "rollout/entropy": float(outputs.entropy_BT[mask_BT].mean()),
        "rollout/logp_difference": float(difference_BT[mask_BT].max()),
        "rollout/logp_difference_mean": float(difference_BT[mask_BT].mean()),
        **{f"rollout/{name}": value for name, value in rollout.counts.items()},
        **by_domain(experience.inputs.behaviour_signal_B, rollout.domain_B, "objective"),
        **worst_domain(outputs.reward_B, rollout.domain_B, "worst/domain_reward"),
        "response/length": float(length_B.float().mean()),
        "response/truncated": float(rollout.truncated_B.float().mean()),
        **response_metrics(experience, seen),
        **learned_metrics(experience),
    }
    if settings.advantage == "gae":
        metrics["value/mean"] = float(outputs.values_BT[mask_BT].mean())
        metrics["return/mean"] = float(experience.return_BT[mask_BT].mean())
    if state.kl_coef is not None:
        metrics["kl/coef"] = state.kl_coef
    if settings.group_count > 1:
        metrics |= diagnostics(
            experience.inputs.group_probs_BM,
            outputs.reward_B,
            experience.kl_B,
            length_B,
            rollout.domain_B,
            signal_B=experience.inputs.behaviour_signal_B,
            best_group=state.groups.best_group,
            weights=settings.weights,
            beta=beta_at(step, settings.beta_policy, settings.beta_ramp) if settings.penalty == "variance" else 0.0,
            mass_floor=settings.mass_floor,
            cap=settings.reweight_cap or math.inf,
            length_factor_B=length_factor(length_B, experience.signal_form, settings.penalty_over),
        )
        metrics |= {"group/best": float(state.groups.best_group or 0), "group/flips": float(state.groups.flips)}
        if settings.groups_from == "domain":
            metrics["group/oracle"] = 1.0  # told the labels: not to be compared as a method
        if settings.penalty == "group_dro":
            metrics |= {f"group/{group}/weight": weight for group, weight in enumerate(state.dro_weight_M)}
    return metrics


def sample_rows(
    prompts: Sequence[Prompt], experience: Experience, tokenizer: PreTrainedTokenizerBase, count: int
) -> list[dict[str, object]]:
    """The first `count` responses of the rollout batch, for samples.jsonl."""
    kept = torch.arange(min(count, len(experience)), device=experience.kl_B.device)
    texts = responses(experience.rollout.sequences.rows(kept), tokenizer)
    return [sample_row(prompts[row], experience, row, text) for row, text in enumerate(texts)]


def sample_row(prompt: Prompt, experience: Experience, row: int, response: str) -> dict[str, object]:
    """A line of samples.jsonl: row `row` of the rollout batch, whose texts are given."""
    rollout = experience.rollout
    return {
        "prompt": prompt.text,
        "response": response,
        "domain": rollout.domain_B[row],
        "reward": float(experience.outputs.reward_B[row]),
        "kl": float(experience.kl_B[row]),
        "length": int(rollout.sequences.response_length_B[row]),
        "truncated": bool(rollout.truncated_B[row]),
        "group_probs": [round(p, 4) for p in experience.inputs.group_probs_BM[row].tolist()],
    }


def sampler_warning(metrics: dict[str, float], dtype: str) -> str:
    """A sentence if sampler and training model disagree on log-probs, else ""."""
    difference, limit = metrics["rollout/logp_difference"], SAMPLER_TOLERANCE[dtype]
    if difference <= limit:
        return ""
    return (
        f"The sampler's log-probs differ from the training model's by up to {difference:.3g} nats (limit {limit:g} in "
        f"{dtype}): the responses come from another policy than the one that is trained."
    )


def waiting_warning(config: Config) -> str:
    """A sentence where the policy waits for its critic until the run ends, else ""."""
    waits, iterations = config.algorithm.critic_warmup, config.run.iterations
    if waits < iterations:
        return ""
    return (
        f"This run does not train the policy: algorithm.critic_warmup={waits} has it wait for the critic, and "
        f"run.iterations is {iterations}. To try the whole way, set algorithm.critic_warmup=0."
    )


def clipped_warning(sifted: Sifted, state: RLState) -> str:
    """A sentence where rewards were winsorised, else ""."""
    count = int(sifted.metrics.get("reward/clipped", 0))
    if not count:
        return ""
    lowest, highest = sifted.metrics["reward/min"], sifted.metrics["reward/max"]
    return (
        f"Rewards far from the others: {count} (all lie from {lowest:g} to {highest:g}; nine tenths keep within "
        f"{state.health.reach or 0.0:.3g} of the median). Each counts as the nearest reward that is not far. The "
        "responses are in samples.jsonl, under clipped. If such rewards are meant, raise algorithm.outlier, or set it "
        "to 0."
    )


def check_start(experience: Experience, dtype: torch.dtype, *, one_layout: bool = True) -> None:
    """Raise NumericsError where a policy that has yet to take its first step is not the reference it starts as: the KL
    is 0 then. one_layout: do both lie on the ranks in the same way?"""
    outputs, length_B = experience.outputs, experience.inputs.length_B
    mask_BT = response_mask(length_B, outputs.behaviour_logp_BT.shape[1])
    difference = float((outputs.behaviour_logp_BT - outputs.reference_logp_BT)[mask_BT].abs().double().mean())
    if bool(mask_BT.any()):
        check_starts_as_reference(difference, dtype, "their KL must be 0", one_layout=one_layout)


def spreads(experience: Experience, metrics: dict[str, float], config: Config) -> dict[str, float]:
    """What shows whether the parts of the method act (`SPREADS`): name -> its size in this iteration; of those that are
    on."""
    settings, inputs = config.algorithm, experience.inputs
    if settings.group_count == 1 or settings.groups_from == "uniform" or len(experience) < 2:
        return {}
    found = {"group_variance": metrics["group/variance"]}
    if settings.kl_penalty == "adaptive" and settings.kl_coef:
        found["kl_weights"] = float(inputs.kl_weight_B.double().std())
    if "policy/weight_std" in metrics:
        found["penalty_weights"] = metrics["policy/weight_std"]
    if settings.signal_normalize:
        found["signal"] = float(inputs.behaviour_signal_B.double().std())
    return found


def count_steps(health: Health, metrics: dict[str, float]) -> Health:
    """The health after the optimizer steps of an iteration."""
    health = health.counted(left=not metrics.get("policy/approx_kl", 0.0) <= _LEFT)
    stepped, updated = (
        {name.removesuffix(end) for name in metrics if name.endswith(end)} for end in ("/skipped", "/grad_norm")
    )
    if not stepped:  # a classifier at rest, while the policy waits for the critic: that counts neither way
        return health
    return health.counted(skipped=not updated or "policy" in stepped - updated)


def check_learned(updates: Mapping[str, int], cause: str, config: Config) -> None:
    """Raise NumericsError where a run ends and nothing of what it trains was ever changed.

    updates: optimizer steps that changed each model, by its role, before restarts too. cause: `check_health`'s.
    """
    policy_waits = config.algorithm.critic_warmup >= config.run.iterations
    if any(updates.values()) if policy_waits else updates["policy"]:
        return
    who = "a model" if policy_waits else "the policy"
    raise NumericsError(
        f"No optimizer step of the {config.run.iterations} iterations changed {who}: nothing was learned. "
        + (cause or "The gradients were not finite: lower policy.lr or critic.lr.")
    )


def check_health(health: Health, cause: str, config: Config) -> None:
    """Raise NumericsError where responses had to be left out, every optimizer step was skipped, or the policy left
    itself, in too many iterations in a row. cause: of this iteration's responses."""
    patience = config.algorithm.invalid_patience
    if health.counts.get("invalid", 0) >= patience:
        raise NumericsError(
            f"{cause} It was so in each of the last {health.counts['invalid']} iterations, and the run stops "
            f"(algorithm.invalid_patience={patience}). The responses are in samples.jsonl, under invalid."
        )
    if health.counts.get("skipped", 0) >= PATIENCE:
        raise NumericsError(
            f"Every optimizer step of the last {PATIENCE} iterations was skipped, because gradients were not "
            "finite. Lower policy.lr or critic.lr, or continue from an earlier checkpoint."
        )
    if health.counts.get("left", 0) >= PATIENCE:
        raise NumericsError(
            f"In each of the last {PATIENCE} iterations the policy moved more than {_LEFT:g} nats a token away from "
            "the responses it had just given: policy.lr is far too large. Lower it, and continue from an earlier "
            "checkpoint."
        )
