"""What each response is paid, with what an ensemble among the rewards says besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from gipo_mc.rl.learned.ensemble import EnsembleReward, conservative
from gipo_mc.rl.reward_sources.mixed import MixedReward, with_parts
from gipo_mc.rl.rewards import Reward
from gipo_mc.types import Prompt, Rollout


@dataclass(frozen=True)
class Level:
    """What the reference's responses to B prompts earn in the mean, float32; NaN where none has a usable reward.

    reward_B: of what the policy is paid. members_KB: of each model of the ensemble; [0, B] where there is none.
    """

    reward_B: Tensor
    members_KB: Tensor


def ensemble_in(reward: Reward) -> EnsembleReward | None:
    """The ensemble that `model.reward` begins, alone or beside other rewards."""
    first = reward.rewards[0] if isinstance(reward, MixedReward) else reward
    return first if isinstance(first, EnsembleReward) else None


def paid(
    reward: Reward,
    prompts: Sequence[Prompt],
    rollout: Rollout,
    level: Level | None = None,
    scores_KB: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """(the reward of each response [B], its parts by name as `with_parts` has them, the models' disagreement [B] or
    None without an ensemble).

    level: of the prompts, to compare an ensemble's models with. scores_KB: what these say, where it is known.
    """
    ensemble = ensemble_in(reward)
    if ensemble is None:
        return *with_parts(reward, prompts, rollout), None
    scores_KB = ensemble.scores(prompts, rollout) if scores_KB is None else scores_KB
    own_B, disagreement_B = conservative(scores_KB, ensemble.deviations, None if level is None else level.members_KB)
    if not isinstance(reward, MixedReward):
        return own_B, {}, disagreement_B
    known = replace(reward, rewards=(lambda prompts, rollout: own_B, *reward.rewards[1:]))
    return *with_parts(known, prompts, rollout), disagreement_B
