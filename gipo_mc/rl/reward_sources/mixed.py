"""Several rewards in one: their weighted sum, less what long and unfinished responses lose.

    reward_i = sum_k w_k r_ik - length_penalty max(0, T_i - free_length) - missing_eos_penalty [i was cut]

with T_i response tokens, EOS counted. A response without one of the rewards has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gipo_mc.config.reward import RewardConfig
from gipo_mc.rl.learned.ensemble import EnsembleReward
from gipo_mc.rl.rewards import ModelReward, Reward
from gipo_mc.types import Prompt, Rollout

LENGTH, MISSING_EOS = "length_penalty", "missing_eos_penalty"


@dataclass(frozen=True)
class MixedReward:
    """The rewards in `rewards`, named and weighted in the same order, and the penalties of `settings`."""

    rewards: tuple[Reward, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    settings: RewardConfig

    @classmethod
    def of(cls, rewards: Sequence[Reward], settings: RewardConfig, first: str) -> Reward:
        """These rewards as one; the first as it is where it is the only one, weighs 1 and nothing is taken from it.
        first: model.reward."""
        weights = settings.weighted()
        if weights == [1.0] and not settings.length_penalty and not settings.missing_eos_penalty:
            return rewards[0]
        return cls(tuple(rewards), tuple(settings.named(first)), tuple(weights), settings)

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        """float32 [B]."""
        return self.sum(self.parts(prompts, rollout))

    @property
    def part_names(self) -> tuple[str, ...]:
        """Of the columns of `parts`."""
        penalties = {LENGTH: self.settings.length_penalty, MISSING_EOS: self.settings.missing_eos_penalty}
        return (*self.names, *(name for name, size in penalties.items() if size))

    def parts(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        """float32 [B, K]: each reward as it came, and each penalty as it is added, 0 or less."""
        columns = [reward(prompts, rollout) for reward in self.rewards]
        length_B = rollout.sequences.response_length_B
        if self.settings.length_penalty:
            over_B = (length_B - self.settings.free_length).clamp(min=0)
            columns.append(-self.settings.length_penalty * over_B.float())
        if self.settings.missing_eos_penalty:
            columns.append(-self.settings.missing_eos_penalty * rollout.truncated_B.to(length_B.device).float())
        return torch.stack([column.float() for column in columns], dim=1)

    def sum(self, parts_BK: Tensor) -> Tensor:
        """float32 [B]: the reward of each response, of its parts."""
        penalties = [1.0] * (parts_BK.shape[1] - len(self.weights))
        # Column by column: the order of the additions is the same for every size of the batch.
        total_B = parts_BK.new_zeros(len(parts_BK))
        for column, weight in enumerate((*self.weights, *penalties)):
            total_B = total_B + weight * parts_BK[:, column]
        return total_B


def models_in(reward: Reward | None) -> list[ModelReward]:
    """The reward models that a reward stands on."""
    parts = reward.rewards if isinstance(reward, MixedReward) else (reward,)
    single = [one for part in parts for one in (part.members if isinstance(part, EnsembleReward) else (part,))]
    return [part for part in single if isinstance(part, ModelReward)]


def with_parts(reward: Reward, prompts: Sequence[Prompt], rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
    """(the reward of each response, float32 [B]; its parts by name, [B] each: none where there is one reward)."""
    if not isinstance(reward, MixedReward):
        return reward(prompts, rollout), {}
    parts_BK = reward.parts(prompts, rollout)
    return reward.sum(parts_BK), dict(zip(reward.part_names, parts_BK.unbind(1), strict=True))
