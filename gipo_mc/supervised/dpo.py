"""Direct preference optimisation: the policy against a frozen reference, on preference pairs, without a reward model.

The reference reads every pair once, before the first step, and is then freed: a step costs what one of SFT does. Its
log-probs are not saved. A resumed run computes those of the pairs that are left again (in a run of one epoch that is
none twice), in the batches that took them first, so that they are the same bits; a file of them would have to be held
against data, tokenizer, reference and lengths, to save one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.dpo import dpo_loss
from gipo_mc.algorithms.supervised import preference_correct
from gipo_mc.config import Config
from gipo_mc.data.tokenizer import load_tokenizer, same_tokens
from gipo_mc.errors import ConfigError, NumericsError
from gipo_mc.models.micro_batch import MicroBatch
from gipo_mc.models.readout import check_starts_as_reference, response_statistics
from gipo_mc.parallel.engine import Engine, LastStage, Outputs
from gipo_mc.run.model_sources import ModelSource, check_fits
from gipo_mc.run.session import Session
from gipo_mc.supervised.group_dpo import GroupDPOTask
from gipo_mc.supervised.loop import Task, forward, held_out_rows, train_supervised, training_rows
from gipo_mc.supervised.pairs import Pairs
from gipo_mc.types import Sequences


class DPOTask(Task):
    """Preference pairs and the reference's log-probs of them, P pairs a batch.

    Metrics: "loss" (a pair), "accuracy" (of the implicit rewards), "margin" (mean difference of the implicit rewards),
    "reward/{chosen,rejected}" (mean implicit reward beta (log pi - log pi_ref)), "logp/{chosen,rejected}" (nats a
    response, under the policy), "tokens".
    """

    unit = Pairs.unit
    outputs = ("pair_loss", "margin", "logp_chosen", "logp_rejected", "reward_chosen", "reward_rejected", "tokens")

    def __init__(self, session: Session, tokenizer: PreTrainedTokenizerBase) -> None:
        config = session.config
        self._settings = config.dpo
        self.guess = 1.0 / (4.0 * config.dpo.beta**2) if config.dpo.loss == "ipo" else math.log(2.0)
        self._logit_rows = config.parallel.logit_rows
        self._device = session.layout.device
        policy = session.source(config.model.policy, "model.policy")
        source = session.source(config.model.reference or config.model.policy, "model.reference")
        self._starts_as_reference = source.folder.resolve() == policy.folder.resolve()
        if not self._starts_as_reference:
            _check_reads_the_same(source, tokenizer, config)
            session.tokenizer(source, config.model.tokenizer or str(policy.folder))
        check_fits(source, session.layout.of_frozen, sequence_length=config.data.sequence_length)
        self.pairs = Pairs(session, tokenizer)
        self.train_size, self.held_out_size = self.pairs.train_size, self.pairs.held_out_size
        self._reference_name = source.name
        self._reference: Engine | None = session.load(source, "lm", key="model.reference")
        # float32 [pairs, 2], chosen and rejected; NaN where the run does not need them.
        self._reference_logp = {False: _unknown(self.train_size), True: _unknown(self.held_out_size)}

    def prepare(self, session: Session, model: Engine) -> None:
        """Score the pairs that the run still takes with the reference, and free it.

        Raises NumericsError if a policy that has yet to take its first step differs from the reference it starts as.
        """
        reference, self._reference = self._reference, None
        assert reference is not None, "the reference scores once"
        batches = list(self._batches_to_score(session))
        pairs = sum(len(rows) for _, rows in batches)
        with session.console.share("reference log-probs", pairs) as tell:
            done = 0
            for held_out, rows in batches:
                found_P2 = self._log_probs_of(session, reference, rows, held_out)
                known_P2 = self._reference_logp[held_out][rows]
                # A batch that reaches into the second epoch holds pairs that another one took first.
                self._reference_logp[held_out][rows] = np.where(np.isnan(known_P2), found_P2, known_P2)
                done += len(rows)
                tell(done, pairs)
        if session.start == 0 and self._starts_as_reference:
            self._check_start(session, model)
        del reference
        torch.cuda.empty_cache()  # training asks for memory in other sizes

    def batch(self, rows: Sequence[int], *, held_out: bool = False) -> tuple[Sequences, LastStage]:
        reference_P2 = torch.from_numpy(self._reference_logp[held_out][np.asarray(rows)]).to(self._device)
        return self.pairs.sequences(rows, held_out=held_out), partial(self._last_stage, reference_P2)

    def normaliser(self, batch: Sequences) -> float:
        return len(batch) / self.unit

    def metrics(self, outputs: dict[str, Tensor], normaliser: float) -> dict[str, float]:
        margin_P = outputs["margin"]
        return {
            "loss": float(outputs["pair_loss"].sum()) / normaliser,
            "accuracy": float(preference_correct(margin_P, torch.zeros_like(margin_P))) / normaliser,
            "margin": float(margin_P.sum()) / normaliser,
            "tokens": float(outputs["tokens"].sum()),
        } | {
            f"{what}/{which}": float(outputs[f"{what}_{which}"].sum()) / normaliser
            for what in ("reward", "logp")
            for which in ("chosen", "rejected")
        }

    def describe(self) -> list[tuple[str, str]]:
        settings = self._settings
        name = "IPO" if settings.loss == "ipo" else "conservative DPO" if settings.label_smoothing else "DPO"
        smoothing = f", label smoothing {settings.label_smoothing:g}" if settings.label_smoothing else ""
        what = f"{name}, beta {settings.beta:g}{smoothing}"
        return [("reference", self._reference_name), ("loss", what), *self.pairs.describe()]

    def _batches_to_score(self, session: Session) -> Iterator[tuple[bool, np.ndarray]]:
        """(held out?, rows): the first batch that takes each of the pairs in the steps that are left."""
        config, size = session.config, self.train_size
        if session.start >= config.run.iterations:
            return
        needed = np.zeros(size, dtype=bool)
        for step in range(session.start, config.run.iterations):
            needed[training_rows(config, size, step)] = True
        for step in range(min(config.run.iterations, -(-size // config.train.batch_size))):
            rows = training_rows(config, size, step)
            if needed[rows].any():
                yield False, rows
        if self.held_out_size and config.eval.prompts:
            for rows in held_out_rows(session, self.held_out_size):
                yield True, rows

    def _log_probs_of(self, session: Session, engine: Engine, rows: np.ndarray, held_out: bool) -> np.ndarray:
        batch = self.pairs.sequences(rows.tolist(), held_out=held_out)
        found = forward(session, engine, batch, self._log_probs, ("chosen", "rejected"), unit=self.unit)
        scored_P2 = torch.stack([found["chosen"], found["rejected"]], dim=1).cpu().numpy()
        if not np.isfinite(scored_P2).all():
            raise NumericsError(
                f"The log-probs of {self._reference_name}, the reference, are not finite: check its weights, or use "
                "dtype=float32."
            )
        return scored_P2

    def _log_probs(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        """Log-prob of the chosen and of the rejected responses, sums over their tokens, [pairs] each."""
        logp_N = response_statistics(model, hidden_LBH, part, 1.0, self._logit_rows).logp_N
        logp_B = part.to_response_BT(logp_N).sum(dim=1)
        return {"chosen": logp_B[0::2], "rejected": logp_B[1::2]}

    def _last_stage(self, reference_P2: Tensor, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        """reference_P2: of all pairs of the batch that `part` was cut from."""
        logp_P = self._log_probs(model, hidden_LBH, part)
        reference_chosen_P, reference_rejected_P = reference_P2[part.units_U].unbind(dim=1)
        settings, length_B = self._settings, part.sequences.response_length_B
        loss_P, margin_P = dpo_loss(
            logp_P["chosen"],
            logp_P["rejected"],
            reference_chosen_P,
            reference_rejected_P,
            beta=settings.beta,
            variant=settings.loss,
            label_smoothing=settings.label_smoothing,
        )
        return {
            "loss_sum": loss_P.sum(),
            "pair_loss": loss_P,
            "margin": margin_P,
            "logp_chosen": logp_P["chosen"],
            "logp_rejected": logp_P["rejected"],
            "reward_chosen": settings.beta * (logp_P["chosen"] - reference_chosen_P),
            "reward_rejected": settings.beta * (logp_P["rejected"] - reference_rejected_P),
            "tokens": (length_B[0::2] + length_B[1::2]).float(),
        }

    def _check_start(self, session: Session, policy: Engine) -> None:
        rows = training_rows(session.config, self.train_size, 0)
        tokens = float(self.pairs.sequences(rows.tolist()).response_length_B.sum())
        found_P2 = self._log_probs_of(session, policy, rows, False)
        difference = float(np.abs(found_P2 - self._reference_logp[False][rows]).sum()) / tokens
        one_layout = session.layout.beside is None
        check_starts_as_reference(difference, session.dtype, "the DPO loss must be ln 2", one_layout=one_layout)


def train(config: Config) -> None:
    """Train `model.policy` (usually the SFT model) on `data.preferences` against `model.reference`."""
    train_supervised(config, "train_dpo", "lm", _task)


def _task(session: Session, tokenizer: PreTrainedTokenizerBase) -> Task:
    task = DPOTask(session, tokenizer)
    return task if session.config.dpo.groups_from == "none" else GroupDPOTask(session, tokenizer, task, task.pairs)


def _unknown(pairs: int) -> np.ndarray:
    return np.full((pairs, 2), np.nan, dtype=np.float32)


def _check_reads_the_same(reference: ModelSource, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    """The log-probs of both models are of the same ids. A user who names one tokenizer vouches for that."""
    if config.model.tokenizer or not (reference.folder / "tokenizer.json").is_file():
        return
    own = load_tokenizer(str(reference.folder), chat_template=config.data.chat_template)
    if not same_tokens(own, tokenizer):
        raise ConfigError(
            f"model.reference={reference.name} has another tokenizer than the policy, so their log-probs cannot be "
            "compared: give a reference with the policy's tokenizer, or none (then it is the policy's start)."
        )
