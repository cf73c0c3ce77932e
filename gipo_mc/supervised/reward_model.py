"""Reward model: Bradley-Terry loss on preference pairs, a fresh head's reward read at the last token of
each dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.supervised import preference_correct, preference_loss_sum
from gipo_mc.config import Config
from gipo_mc.models.micro_batch import MicroBatch
from gipo_mc.models.readout import response_rewards
from gipo_mc.parallel.engine import LastStage, Outputs
from gipo_mc.run.session import Session
from gipo_mc.supervised.loop import Task, train_supervised
from gipo_mc.supervised.pairs import Pairs
from gipo_mc.types import Sequences


class RewardTask(Task):
    """Preference pairs. Metrics: "loss" (nats a pair), "accuracy", "margin" (mean reward difference), "reward" (mean
    over all responses); where pairs have several domains "accuracy/domain/<name>" of those in the batch."""

    unit = Pairs.unit
    outputs = ("chosen", "rejected", "domain")

    def __init__(self, session: Session, tokenizer: PreTrainedTokenizerBase) -> None:
        self._margin = session.config.train.margin
        self.guess = float(preference_loss_sum(torch.zeros(1), torch.zeros(1), self._margin))
        self._pairs = Pairs(session, tokenizer)
        self.train_size, self.held_out_size = self._pairs.train_size, self._pairs.held_out_size
        self._device = session.layout.device
        domains = {part: self._pairs.domain_of(held_out=part) for part in (False, True)}
        self._names = sorted({*domains[False], *domains[True]})
        number = {name: float(place) for place, name in enumerate(self._names)}
        self._domain_P = {part: torch.tensor([number[name] for name in names]) for part, names in domains.items()}

    def batch(self, rows: Sequence[int], *, held_out: bool = False) -> tuple[Sequences, LastStage]:
        domain_P = self._domain_P[held_out][list(rows)].to(self._device)
        return self._pairs.sequences(rows, held_out=held_out), partial(self.last_stage, domain_P)

    def last_stage(self, domain_P: Tensor, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        reward_B = response_rewards(model, hidden_LBH, part)
        chosen_P, rejected_P = reward_B[0::2], reward_B[1::2]
        loss_sum = preference_loss_sum(chosen_P, rejected_P, self._margin)
        return {"loss_sum": loss_sum, "chosen": chosen_P, "rejected": rejected_P, "domain": domain_P[part.units_U]}

    def normaliser(self, batch: Sequences) -> float:
        return len(batch) / self.unit

    def metrics(self, outputs: dict[str, Tensor], normaliser: float) -> dict[str, float]:
        chosen_P, rejected_P = outputs["chosen"], outputs["rejected"]
        return {
            "loss": float(preference_loss_sum(chosen_P, rejected_P, self._margin)) / normaliser,
            "accuracy": float(preference_correct(chosen_P, rejected_P)) / normaliser,
            "margin": float((chosen_P - rejected_P).mean()),
            "reward": float(torch.cat([chosen_P, rejected_P]).mean()),
            **self._by_domain(chosen_P, rejected_P, outputs["domain"]),
        }

    def _by_domain(self, chosen_P: Tensor, rejected_P: Tensor, domain_P: Tensor) -> dict[str, float]:
        members = {name: (domain_P == place).nonzero().flatten() for place, name in enumerate(self._names)}
        return {
            f"accuracy/domain/{name}": float(preference_correct(chosen_P[rows], rejected_P[rows])) / len(rows)
            for name, rows in members.items()
            if len(rows) and len(members) > 1
        }

    def describe(self) -> list[tuple[str, str]]:
        return self._pairs.describe()


def train(config: Config) -> None:
    """Train a reward model from `model.policy` (usually the SFT model) on `data.preferences`."""
    train_supervised(config, "train_reward", "reward", RewardTask)
