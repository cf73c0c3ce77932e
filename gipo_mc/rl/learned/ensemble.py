"""Several reward models as one reward: their mean, less where they disagree.

A policy that follows one reward model finds what that model overrates. Models that were trained from other data or
seeds overrate other things, so their standard deviation is large there: reward = mean - deviations * std (Coste et al.,
arXiv 2310.02743, have the variance in its place).

A Bradley-Terry model leaves the level of each prompt's rewards open, and two models leave it open in two ways. Where
the reference's own responses to the prompt have been scored (`reference`), each model's mean reward of these is taken
off before the standard deviation, which then is of what the models say of the response, not of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gipo_mc.rl.rewards import ModelReward
from gipo_mc.types import Prompt, Rollout


def conservative(members_KB: Tensor, deviations: float, level_KB: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(reward [B], disagreement [B]) of K models: mean - deviations * std, and that std (the population's).

    members_KB: each model's rewards. level_KB: what each model gives the prompt's reference responses in the mean.
    """
    compared_KB = members_KB if level_KB is None else members_KB - level_KB
    disagreement_B = compared_KB.std(dim=0, correction=0)
    return members_KB.mean(dim=0) - deviations * disagreement_B, disagreement_B


class EnsembleReward:
    """Reward models that score the same responses. deviations: reward.deviations."""

    def __init__(self, members: Sequence[ModelReward], deviations: float) -> None:
        self.members = tuple(members)
        self.deviations = deviations

    def scores(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        """float32 [K, B]: what each model says."""
        return torch.stack([member(prompts, rollout) for member in self.members])

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        """See `Reward`; the models' rewards are compared as they are."""
        return conservative(self.scores(prompts, rollout), self.deviations)[0]
