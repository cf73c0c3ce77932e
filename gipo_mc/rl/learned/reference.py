"""What the reference's own responses to a prompt earn: the level that a reward is a gain over.

A Bradley-Terry reward model is trained on differences between responses to one prompt, and a function of the prompt
alone, added to it, changes none of them: the level between prompts, and so between domains, is an accident. Reward
minus the mean reward of k responses of the reference to the same prompt does not depend on that level.

The responses are drawn from streams of (seed, prompt), so they do not depend on when a prompt comes first. Each prompt
is sampled and scored once; of training prompts the mean rewards are kept in the run folder (reference_rewards.jsonl),
so that a run that continues has the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import Config
from gipo_mc.generation.engine import RolloutEngine
from gipo_mc.parallel.collectives import on_main
from gipo_mc.rl.learned.paid import Level, ensemble_in, paid
from gipo_mc.rl.rewards import Reward
from gipo_mc.rl.rollout import roll_out
from gipo_mc.rl.sifting import usable_rewards
from gipo_mc.run.jsonl import JsonLines
from gipo_mc.types import Prompt

#: In the run folder.
FILE = "reference_rewards.jsonl"
#: Which prompts: the number of a prompt counts in one of the two sets.
Part = Literal["train", "evaluation"]


class ReferenceSamples:
    """Levels of prompts, each sampled when it is first asked for, on all ranks alike.

    engine: generates with the frozen reference, in its own layout. reward: what scores. file: where levels are kept.
    """

    def __init__(
        self, engine: RolloutEngine, reward: Reward, tokenizer: PreTrainedTokenizerBase, config: Config, file: Path
    ) -> None:
        self._engine, self._reward, self._tokenizer, self._config = engine, reward, tokenizer, config
        self._lines = JsonLines(file)
        self._known: dict[Part, dict[int, tuple[float, ...]]] = {"train": {}, "evaluation": {}}

    def begin(self, *, anew: bool) -> None:
        """Before the first iteration of a start. anew: it continues nothing, and what the file holds is of an attempt
        that may have had other models. Raises DataError where a line of the file is damaged."""

        def work() -> list[dict[str, Any]]:
            if anew:
                self._lines.path.unlink(missing_ok=True)
            return self._lines.mend(self._check_line)

        rows = on_main(work)
        self._known["train"] = {
            row["prompt"]: tuple(math.nan if x is None else x for x in row["rewards"]) for row in rows
        }

    def __call__(self, prompts: Sequence[Prompt], part: Part = "train") -> Level:
        """Levels of B prompts, the same on every rank; a prompt may come more than once."""
        known = self._known[part]
        new = {prompt.index: prompt for prompt in prompts if prompt.index not in known}
        if new:
            levels = self._sampled(list(new.values()), part)
            if part == "train":
                lines = [{"prompt": index, "rewards": list(rewards)} for index, rewards in levels.items()]
                on_main(lambda: self._lines.append(*lines))
            known |= levels
        found = [known[prompt.index] for prompt in prompts]
        columns = torch.tensor(found, dtype=torch.float32, device=self._engine.layout.device).T.contiguous()
        return Level(columns[0], columns[1:])

    def _sampled(self, prompts: Sequence[Prompt], part: Part) -> dict[int, tuple[float, ...]]:
        """Number of each prompt -> (mean reward, mean reward of each reward model) of its responses."""
        count = self._config.algorithm.reference_samples
        repeated = [prompt for prompt in prompts for _ in range(count)]
        purpose = "reference" if part == "train" else f"reference/{part}"
        with self._engine.layout.active():
            rollout = roll_out(self._engine, self._tokenizer, repeated, self._config, 0, purpose=purpose)
        ensemble = ensemble_in(self._reward)
        scores_KB = None if ensemble is None else self._usable(ensemble.scores(repeated, rollout))
        members_Kb = rollout.sampler_logp_BT.new_zeros(0, len(prompts))
        if scores_KB is not None:
            members_Kb = scores_KB.unflatten(1, (-1, count)).nanmean(dim=2)
        level = Level(members_Kb.new_zeros(len(repeated)), members_Kb.repeat_interleave(count, dim=1))
        reward_B, _, _ = paid(self._reward, repeated, rollout, level, scores_KB)
        reward_b = self._usable(reward_B[None]).unflatten(1, (-1, count)).nanmean(dim=2)
        rows = torch.cat([reward_b, members_Kb]).T.tolist()
        return {prompt.index: tuple(row) for prompt, row in zip(prompts, rows, strict=True)}

    def _usable(self, rewards_KB: Tensor) -> Tensor:
        return torch.stack([usable_rewards(reward_B, self._config) for reward_B in rewards_KB])

    def _check_line(self, row: dict[str, Any]) -> None:
        rewards, models = row.get("rewards"), self._config.reward.models
        count = 2 + len(models) if models else 1  # the reward, and each model of an ensemble
        if type(row.get("prompt")) is not int:
            raise ValueError('"prompt" must be the number of a prompt')
        if not isinstance(rewards, list) or len(rewards) != count or not all(map(_is_number_or_none, rewards)):
            raise ValueError(f'"rewards" must be a list of {count}, the reward and each model of an ensemble')


def _is_number_or_none(value: object) -> bool:
    return value is None or isinstance(value, float)
