"""Stage 1: the critic learns the returns, and the group classifier on top of it maximises the group variance R_var.

    loss = clipped value loss - beta_critic R_var(p_phi), S detached            (Zheng et al., arXiv 2310.11971)

R_var is not linear in the batch, so each mini-batch takes two passes: probabilities of all its sequences first (for
the first mini-batch of an iteration the rollout's are still exact and cost nothing), then the backward pass with
dR_var/dp fixed. The result is the gradient of R_var of the whole mini-batch, however it is split.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gipo_mc.algorithms.group_inference import classifier_loss_terms
from gipo_mc.algorithms.group_invariance import GroupMoments, group_statistics, moments
from gipo_mc.algorithms.ppo import explained_variance, value_loss_sum
from gipo_mc.config import Config
from gipo_mc.parallel.engine import Engine, Outputs
from gipo_mc.training.batching import MicroBatch, micro_batches, run_backward, run_forward
from gipo_mc.training.last_stage import group_probabilities, response_values
from gipo_mc.training.mini_batches import MiniBatch, mini_batches
from gipo_mc.training.scoring import inferred_groups
from gipo_mc.training.updates import Progress, UpdateLog
from gipo_mc.types import Experience


def update_critic(
    critic: Engine, experience: Experience, config: Config, step: int, on_step: Progress | None = None
) -> dict[str, float]:
    """All critic steps of an iteration. Metrics "critic/{loss,explained_variance,grad_norm,lr,skipped}" and, with
    groups, "critic/group_variance" (of the classifier's objective, mean over mini-batches)."""
    log, done = UpdateLog("critic"), 0
    for batch in mini_batches(experience, config, step, "critic"):
        parts = micro_batches(
            batch.sequences, config.parallel.micro_batch_size, critic.layout, times=experience.rollout.times
        )
        statistics = None
        if inferred_groups(config) > 1:
            statistics = _group_moments(critic, parts, batch, experience, config)
            log.add(group_variance=float(statistics.variance))
        outputs = _backward(critic, parts, batch, statistics, experience, config)
        log.add(loss=float(outputs["value_loss"].sum()) / batch.tokens)
        log.step(critic.step())
        done += len(batch)
        if on_step is not None:
            on_step(done, config.algorithm.epochs * len(experience.rollout.sequences))
    values_BT, length_B = experience.scores.values_BT, experience.rollout.sequences.response_length_B
    return log.metrics() | {"critic/explained_variance": explained_variance(values_BT, experience.return_BT, length_B)}


def _group_moments(
    critic: Engine, parts: list[MicroBatch], batch: MiniBatch, experience: Experience, config: Config
) -> GroupMoments:
    """First pass: R_var of the whole mini-batch under the current classifier, identical on every rank."""
    settings = config.algorithm
    if batch.first or settings.group_statistics == "rollout":
        probs_BM = experience.scores.group_probs_BM[batch.rows_B]
    else:

        def last_stage(model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
            return {"groups": group_probabilities(model, hidden_LBH, part, reads=settings.group_input, detach=True)}

        probs_BM = run_forward(critic, parts, len(batch), last_stage, {"groups": settings.groups})["groups"]
    mass_M, weighted_M = group_statistics(probs_BM, experience.signal_B[batch.rows_B])
    return moments(mass_M, weighted_M, len(batch), settings.weights)


def _backward(
    critic: Engine,
    parts: list[MicroBatch],
    batch: MiniBatch,
    statistics: GroupMoments | None,
    experience: Experience,
    config: Config,
) -> dict[str, Tensor]:
    """Second pass: value loss (token mean over the mini-batch) and the classifier's share of -beta R_var."""
    settings = config.algorithm

    def last_stage(model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        rows_B = batch.rows_B[part.rows_B]
        values_BT = response_values(model, hidden_LBH, part)
        length_B = part.sequences.response_length_B
        old_BT, return_BT = experience.scores.values_BT[rows_B], experience.return_BT[rows_B]
        value_loss = value_loss_sum(values_BT, old_BT, return_BT, length_B, settings.value_clip)
        loss = value_loss / batch.tokens
        if statistics is not None:
            probs_BM = group_probabilities(
                model,
                hidden_LBH,
                part,
                reads=settings.group_input,
                detach=settings.group_trunk == "detached",
            )
            loss = loss + classifier_loss_terms(probs_BM, experience.signal_B[rows_B], statistics, settings.beta_critic)
        # One number a row, so that rows of all ranks can be gathered: the sum stands in the first, the rest is 0.
        share_B = torch.zeros_like(length_B, dtype=torch.float32)
        share_B[0] = value_loss.detach()
        return {"loss": loss, "value_loss": share_B}

    return run_backward(critic, parts, len(batch), last_stage, {"value_loss": 0})
