"""rollout -> scores: behaviour and reference log-probs, values, rewards and group probabilities, each phase timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gipo_mc.config import Config
from gipo_mc.errors import NumericsError
from gipo_mc.parallel.engine import Engine
from gipo_mc.training.batching import micro_batches, run_forward
from gipo_mc.training.last_stage import token_log_probs, values_and_groups
from gipo_mc.training.rewards import Reward
from gipo_mc.training.timing import Phases
from gipo_mc.types import Prompt, Rollout, Scores


@dataclass(frozen=True)
class Models:
    """The four models of an RL run. The reference and the reward are frozen."""

    policy: Engine
    reference: Engine
    critic: Engine
    reward: Reward


def inferred_groups(config: Config) -> int:
    """Groups that are inferred: M for gi_ppo, 1 (no classifier) for the baselines."""
    return config.algorithm.groups if config.algorithm.name == "gi_ppo" else 1


def score(models: Models, prompts: Sequence[Prompt], rollout: Rollout, config: Config, phases: Phases) -> Scores:
    """Everything the models say of a rollout, on every rank. Raises NumericsError if a reward is not finite."""
    sequences = rollout.sequences
    times = rollout.times
    batches = micro_batches(sequences, config.parallel.micro_batch_size, models.policy.layout)
    log_probs = token_log_probs(config.rollout.temperature, config.parallel.logit_rows)
    groups = inferred_groups(config)
    with phases("behaviour_logprob"):
        widths = {"logp": times, "entropy": times}
        behaviour = run_forward(models.policy, batches, len(sequences), log_probs, widths)
    with phases("reference_logprob"):
        reference = run_forward(models.reference, batches, len(sequences), log_probs, {"logp": times})
    with phases("values"):
        widths = {"values": times} | ({"groups": groups} if groups > 1 else {})
        stage = values_and_groups(groups, config.algorithm.group_input)
        critic = run_forward(models.critic, batches, len(sequences), stage, widths)
    with phases("rewards"):
        reward_B = models.reward(prompts, rollout)
    _check_finite("reward", reward_B)
    _check_finite("value", critic["values"])
    _check_finite("log-prob", behaviour["logp"])
    probabilities = critic["groups"] if groups > 1 else torch.ones_like(reward_B).unsqueeze(1)
    return Scores(
        behaviour_logp_BT=behaviour["logp"],
        entropy_BT=behaviour["entropy"],
        reference_logp_BT=reference["logp"],
        values_BT=critic["values"],
        reward_B=reward_B,
        group_probs_BM=probabilities,
    )


def _check_finite(name: str, values: torch.Tensor) -> None:
    broken = (~torch.isfinite(values)).reshape(len(values), -1).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise NumericsError(
            f"The {name} of {len(broken)} responses is not finite (the first: row {broken[0]} of the rollout). No "
            "parameter was changed by it. Look at samples.jsonl, lower the learning rates, or go back to a checkpoint."
        )
