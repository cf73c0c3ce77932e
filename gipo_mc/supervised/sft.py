"""Supervised fine-tuning: token cross entropy on the response tokens of demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.supervised import cross_entropy_sum
from gipo_mc.config import Config
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.loading import load_demonstrations
from gipo_mc.data.named import sources_of
from gipo_mc.data.sets import seen_in_training
from gipo_mc.models.micro_batch import MicroBatch
from gipo_mc.models.readout import response_statistics
from gipo_mc.parallel.engine import LastStage, Outputs
from gipo_mc.run.session import Session
from gipo_mc.supervised.loop import Task, train_supervised
from gipo_mc.types import Sequences


class SFTTask(Task):
    """Demonstrations, and the cross entropy of their responses. Metrics: "loss" (nats a token), "tokens"."""

    unit = 1
    outputs = ("cross_entropy", "tokens")

    def __init__(self, session: Session, tokenizer: PreTrainedTokenizerBase) -> None:
        config = session.config
        self._pad_id = tokenizer.pad_token_id
        self.guess = math.log(max(len(tokenizer), 2))
        self._logit_rows = config.parallel.logit_rows
        self._turns = config.data.turns
        self._train = load_demonstrations(config.data, tokenizer, seed=config.run.seed)
        session.trains_on("data.demonstrations", self._train, tokenizer)
        self._held_out = None
        if sources_of(config.data, "demonstrations", "evaluation"):
            self._held_out = load_demonstrations(config.data, tokenizer, seed=config.run.seed, part="evaluation")
            if text := seen_in_training(self._train, self._held_out):
                session.warn(text)
        self.train_size = len(self._train)
        self.held_out_size = len(self._held_out) if self._held_out else 0

    def batch(self, rows: Sequence[int], *, held_out: bool = False) -> tuple[Sequences, LastStage]:
        data = self._held_out if held_out else self._train
        assert data is not None
        chosen = [data[row] for row in rows]
        prompts, responses = [row.prompt_ids for row in chosen], [row.response_ids for row in chosen]
        return to_sequences(prompts, responses, self._pad_id), self.last_stage

    def last_stage(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        return response_loss(model, hidden_LBH, part, self._logit_rows)

    def normaliser(self, batch: Sequences) -> float:
        return float(batch.response_length_B.sum().clamp(min=1))

    def metrics(self, outputs: dict[str, Tensor], normaliser: float) -> dict[str, float]:
        return {"loss": float(outputs["cross_entropy"].sum()) / normaliser, "tokens": float(outputs["tokens"].sum())}

    def describe(self) -> list[tuple[str, str]]:
        held_out = self._held_out.describe() if self._held_out else "none"
        learns = f"{'every' if self._turns == 'all' else 'the last'} assistant turn of a dialogue (data.turns)"
        return [("demonstrations", self._train.describe()), ("learns", learns), ("held out", held_out)]


def response_loss(model: Any, hidden_LBH: Tensor, part: MicroBatch, logit_rows: int) -> Outputs:
    """ "loss_sum", the cross entropy of a micro-batch's responses, and by row "cross_entropy" and "tokens"."""
    logp_N = response_statistics(model, hidden_LBH, part, 1.0, logit_rows).logp_N
    loss_sum, _ = cross_entropy_sum(logp_N, part.target_N)
    return {
        "loss_sum": loss_sum,
        "cross_entropy": -part.to_response_BT(logp_N).sum(dim=1),
        "tokens": part.sequences.response_length_B.float(),
    }


def train(config: Config) -> None:
    """Fine-tune `model.policy` on `data.demonstrations`."""
    train_supervised(config, "train_sft", "lm", SFTTask)
