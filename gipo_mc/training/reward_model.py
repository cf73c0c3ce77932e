"""Reward model: Bradley-Terry loss on preference pairs, the reward read at the last token of each dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.reward_model import preference_correct, preference_loss_sum
from gipo_mc.config import Config
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.loading import load_preferences, sources_of
from gipo_mc.parallel.engine import Outputs
from gipo_mc.training.batching import MicroBatch
from gipo_mc.training.supervised import train_supervised
from gipo_mc.types import Sequences


class RewardTask:
    """Preference pairs; rows of a batch alternate chosen, rejected. Metrics: "loss" (nats a pair), "accuracy",
    "margin" (mean reward difference), "reward" (mean over all responses)."""

    unit = 2
    outputs = ("chosen", "rejected")

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad_id = tokenizer.pad_token_id
        self._margin = config.train.margin
        self._train = load_preferences(config.data, tokenizer, seed=config.run.seed)
        self._held_out = None
        if sources_of(config.data, "preferences", "evaluation"):
            self._held_out = load_preferences(config.data, tokenizer, seed=config.run.seed, part="evaluation")
        self.train_size = len(self._train)
        self.held_out_size = len(self._held_out) if self._held_out else 0

    def batch(self, rows: Sequence[int], *, held_out: bool = False) -> Sequences:
        data = self._held_out if held_out else self._train
        assert data is not None
        pairs = [data[row] for row in rows]
        return to_sequences(
            [pair.prompt_ids for pair in pairs for _ in range(2)],
            [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)],
            self._pad_id,
        )

    def last_stage(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        reward_B = model.reward(hidden_LBH.flatten(0, 1)[part.last_B])
        chosen_P, rejected_P = reward_B[0::2], reward_B[1::2]
        loss_sum = preference_loss_sum(chosen_P, rejected_P, self._margin)
        return {"loss_sum": loss_sum, "chosen": chosen_P, "rejected": rejected_P}

    def normaliser(self, batch: Sequences) -> float:
        return len(batch) / self.unit

    def metrics(self, outputs: dict[str, Tensor], normaliser: float) -> dict[str, float]:
        chosen_P, rejected_P = outputs["chosen"], outputs["rejected"]
        return {
            "loss": float(preference_loss_sum(chosen_P, rejected_P, self._margin)) / normaliser,
            "accuracy": float(preference_correct(chosen_P, rejected_P)) / normaliser,
            "margin": float((chosen_P - rejected_P).mean()),
            "reward": float(torch.cat([chosen_P, rejected_P]).mean()),
        }

    def describe(self) -> list[tuple[str, str]]:
        held_out = self._held_out.describe() if self._held_out else "none"
        return [("preferences", self._train.describe()), ("held out", held_out)]


def train(config: Config) -> None:
    """Train a reward model from `model.policy` (usually the SFT model) on `data.preferences`."""
    train_supervised(config, "train_reward", "reward", RewardTask)
