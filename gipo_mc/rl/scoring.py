"""rollout -> model outputs: behaviour and reference log-probs, values, rewards, group probabilities; phases timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gipo_mc.config import Config
from gipo_mc.models.micro_batch import micro_batches, run_forward
from gipo_mc.models.readout import groups_alone, token_log_probs, values_and_groups
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.timing import Phases
from gipo_mc.rl.experience import ModelOutputs
from gipo_mc.rl.learned.paid import paid
from gipo_mc.rl.learned.reference import ReferenceSamples
from gipo_mc.rl.rewards import Reward
from gipo_mc.types import Prompt, Rollout


@dataclass(frozen=True)
class Models:
    """The models of an RL run. The reference and the reward are frozen.

    critic: None where advantages need none. classifier: the group classifier where it has a trunk of its own, else
    None, and it stands on the critic. reference_samples: the level of each prompt, None where nothing asks for it.
    """

    policy: Engine
    reference: Engine
    critic: Engine | None
    reward: Reward
    classifier: Engine | None = None
    reference_samples: ReferenceSamples | None = None


def score(models: Models, prompts: Sequence[Prompt], rollout: Rollout, config: Config, phases: Phases) -> ModelOutputs:
    """Everything the models say of a rollout, on every rank; `sifting.sift` leaves out what is not finite."""
    sequences = rollout.sequences
    width = rollout.width
    packed = micro_batches(sequences, config.parallel, models.policy.layout)
    phases.padding["scoring"] = packed.padding
    log_probs = token_log_probs(config.rollout.temperature, config.parallel.logit_rows)
    with phases("behaviour_logprob"):
        widths = {"logp": width, "entropy": width}
        behaviour = run_forward(models.policy, packed, log_probs, widths)
    with phases("reference_logprob"):
        # Frozen models may have another layout, and so other rows on a rank.
        theirs = micro_batches(sequences, config.parallel, models.reference.layout)
        reference = run_forward(models.reference, theirs, log_probs, {"logp": width})
    with phases("values"):
        values_BT = torch.zeros_like(behaviour["logp"])
        group_probs_BM = values_BT.new_ones(len(sequences), 1)
        groups = config.algorithm.groups if config.algorithm.inferred else 1
        if models.critic is not None:
            on_critic = groups if models.classifier is None else 1
            widths = {"values": width} | ({"groups": groups} if on_critic > 1 else {})
            stage = values_and_groups(on_critic, config.algorithm.group_input)
            critic = run_forward(models.critic, packed, stage, widths)
            values_BT, group_probs_BM = critic["values"], critic.get("groups", group_probs_BM)
        if models.classifier is not None:
            stage = groups_alone(config.algorithm.group_input)
            found = run_forward(models.classifier, packed, stage, {"groups": groups})
            group_probs_BM = found["groups"]
    level = None
    if models.reference_samples is not None:
        with phases("reference_samples"):
            level = models.reference_samples(prompts)
    with phases("rewards"):
        reward_B, reward_parts, disagreement_B = paid(models.reward, prompts, rollout, level)
    return ModelOutputs(
        behaviour_logp_BT=behaviour["logp"],
        entropy_BT=behaviour["entropy"],
        reference_logp_BT=reference["logp"],
        values_BT=values_BT,
        reward_B=reward_B,
        group_probs_BM=group_probs_BM,
        level_B=None if level is None else level.reward_B,
        disagreement_B=disagreement_B,
        reward_parts=reward_parts,
    )
