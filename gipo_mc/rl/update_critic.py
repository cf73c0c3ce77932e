"""Stage 1: the critic learns the returns, and the group classifier maximises the group variance R_var.

    loss = clipped value loss - beta_critic R_var(p_phi) + balance KL(mean p_phi || uniform), S detached
                                                                              (Zheng et al., arXiv 2310.11971)

The classifier stands on the critic, or is a model of its own, with an update of its own. R_var is not linear in the
batch, so each mini-batch takes two passes: probabilities of all its sequences first, then the backward pass with
dR_var/dp fixed. The first one costs nothing for the first mini-batch of an iteration, where the rollout's are still
exact, and for one that is a single micro-batch, which has them before its loss. The result is the gradient of R_var of
the whole mini-batch, however it is split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gipo_mc.algorithms.group_inference import classifier_loss_terms
from gipo_mc.algorithms.group_invariance import GroupMoments, group_statistics, moments
from gipo_mc.algorithms.ppo import explained_variance, value_loss_sum
from gipo_mc.config import AlgorithmConfig, Config
from gipo_mc.models.micro_batch import MicroBatch, PackedBatch, micro_batches, run_backward, run_forward
from gipo_mc.models.readout import group_probabilities, groups_alone, response_values
from gipo_mc.parallel.engine import Engine, Outputs
from gipo_mc.rl.experience import Experience
from gipo_mc.rl.mini_batch import MiniBatch, mini_batches
from gipo_mc.rl.scoring import Models
from gipo_mc.rl.update_log import Progress, UpdateLog

#: Sequences that show how stable the assignment is after an update of one step: a forward pass of theirs is what that
#: costs. With more steps the last one's own probabilities show it.
STABILITY_ROWS = 64


@dataclass(frozen=True)
class _Part:
    """What one engine learns in this stage."""

    engine: Engine
    prefix: str
    values: bool
    groups: bool


@dataclass(frozen=True)
class CriticLoss:
    """A micro-batch's share of the mini-batch's loss: value loss (token mean over the mini-batch), and the classifier's
    share of -beta R_var, for what the model has to learn.

    statistics: R_var of the mini-batch from the first pass, or a function of its probabilities [B, M] where a
    micro-batch is all of it and no first pass was taken; None: no classifier to train.
    """

    batch: MiniBatch
    values: bool
    statistics: GroupMoments | Callable[[Tensor], GroupMoments] | None
    settings: AlgorithmConfig

    def __call__(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        """ "loss"; with values "value_loss", the sum over the micro-batch's tokens; with a classifier "groups"."""
        experience, settings = self.batch.experience, self.settings
        outputs: Outputs = {}
        loss = hidden_LBH.new_zeros((), dtype=torch.float32)
        if self.values:
            values_BT = response_values(model, hidden_LBH, part)
            old_BT, return_BT = experience.outputs.values_BT[part.rows_B], experience.return_BT[part.rows_B]
            length_B = part.sequences.response_length_B
            outputs["value_loss"] = value_loss_sum(values_BT, old_BT, return_BT, length_B, settings.value_clip)
            loss = outputs["value_loss"] / self.batch.tokens
        if self.statistics is not None:
            detach = settings.group_trunk == "detached"
            probs_BM = group_probabilities(model, hidden_LBH, part, reads=settings.group_input, detach=detach)
            signal_B = experience.inputs.behaviour_signal_B[part.rows_B]
            statistics = self.statistics
            if callable(statistics):
                known_BM = probs_BM.detach()
                statistics = statistics(torch.empty_like(known_BM).index_copy_(0, part.rows_B, known_BM))
            loss = loss + classifier_loss_terms(
                probs_BM, signal_B, statistics, beta=settings.beta_critic, balance=settings.balance
            )
            outputs["groups"] = probs_BM.detach()
        return outputs | {"loss": loss}

    def backward(self, engine: Engine, packed: PackedBatch) -> dict[str, Tensor]:
        """The gradients of the whole mini-batch; "value_loss" summed, "groups" [b, M], on every rank."""
        widths = {} if self.statistics is None else {"groups": self.settings.groups}
        sums = ("value_loss",) if self.values else ()
        return run_backward(engine, packed, self, widths, sums)


def update_critic(
    models: Models, experience: Experience, config: Config, step: int, on_step: Progress | None = None
) -> dict[str, float]:
    """All steps of critic and classifier in an iteration. Metrics "critic/{loss,explained_variance,grad_norm,lr,
    skipped}" and "padding/update_critic", with a classifier "critic/group_variance" (of its objective, mean over
    mini-batches; "classifier/..." and "padding/update_classifier" where it is a model of its own) and
    "group/stability": the share of the last mini-batch's sequences whose likeliest group at that step is the same as at
    the rollout; where there is one step, of up to 64 sequences after it.
    Without a critic or classifier to train: no metrics.
    """
    settings = config.algorithm
    due = settings.inferred and step % settings.classifier_every == 0
    parts = []
    if models.critic is not None:
        parts.append(_Part(models.critic, "critic", values=True, groups=due and models.classifier is None))
    if models.classifier is not None and due:
        parts.append(_Part(models.classifier, "classifier", values=False, groups=True))
    metrics: dict[str, float] = {}
    for part in parts:
        metrics |= _update(part, experience, config, step, on_step)
    if models.critic is not None:
        values_BT, length_B = experience.outputs.values_BT, experience.inputs.length_B
        metrics["critic/explained_variance"] = explained_variance(values_BT, experience.return_BT, length_B)
    return metrics


def _update(
    part: _Part, experience: Experience, config: Config, step: int, on_step: Progress | None
) -> dict[str, float]:
    log, done, settings = UpdateLog(part.prefix), 0, config.algorithm
    epochs = settings.critic_epochs or settings.epochs
    for batch in mini_batches(experience, config, step, "critic", epochs, part.engine.layout.data):
        packed = batch.micro_batches(config.parallel, part.engine.layout)
        log.padding(packed.padding)
        statistics = None
        if part.groups:
            statistics = _group_moments(part.engine, packed, batch, settings)
        outputs = CriticLoss(batch, part.values, statistics, settings).backward(part.engine, packed)
        if statistics is not None:
            # A function was called by the last stage alone; every rank says the same of it.
            found = statistics(outputs["groups"]) if callable(statistics) else statistics
            log.add(group_variance=float(found.variance))
        if part.values:
            log.add(loss=float(outputs["value_loss"]) / batch.tokens)
        log.step(part.engine.step())
        done += len(batch)
        if on_step is not None:
            on_step(done, epochs * len(experience))
    metrics = log.metrics()
    if part.groups:
        before_BM, after_BM = batch.experience.outputs.group_probs_BM, outputs["groups"]
        if batch.first:
            before_BM, after_BM = _groups_now(part.engine, experience, config)
        metrics["group/stability"] = float((before_BM.argmax(1) == after_BM.argmax(1)).double().mean())
    return metrics


def _group_moments(
    engine: Engine, packed: PackedBatch, batch: MiniBatch, settings: AlgorithmConfig
) -> GroupMoments | Callable[[Tensor], GroupMoments]:
    """R_var of the whole mini-batch under the current classifier, identical on every rank, from the first pass; or as a
    function of its probabilities [b, M], where the backward pass has them in time."""

    def of_probabilities(probs_BM: Tensor) -> GroupMoments:
        mass_M, weighted_M = group_statistics(probs_BM, batch.experience.inputs.behaviour_signal_B)
        return moments(mass_M, weighted_M, len(batch), settings.weights)

    if batch.first or settings.group_statistics != "exact":
        return of_probabilities(batch.experience.outputs.group_probs_BM)
    if packed.is_one_pass:
        return of_probabilities
    stage = groups_alone(settings.group_input)
    return of_probabilities(run_forward(engine, packed, stage, {"groups": settings.groups})["groups"])


def _groups_now(engine: Engine, experience: Experience, config: Config) -> tuple[Tensor, Tensor]:
    """Group probabilities of the first sequences of the rollout batch, at the rollout and now."""
    rollout = experience.rollout
    count = min(len(experience), STABILITY_ROWS)
    some = rollout.sequences.rows(torch.arange(count, device=experience.kl_B.device))
    packed = micro_batches(some, config.parallel, engine.layout, width=rollout.width)
    stage, widths = groups_alone(config.algorithm.group_input), {"groups": config.algorithm.groups}
    after_BM = run_forward(engine, packed, stage, widths)["groups"]
    return experience.outputs.group_probs_BM[:count], after_BM
