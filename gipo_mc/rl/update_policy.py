"""Stage 2: PPO on the shaped advantages, minus beta times the group variance, so that no group is left behind.

    loss = - (1/n) sum_it min(ratio A, clip(ratio) A) + beta R_var(S_theta) - entropy bonus      (arXiv 2310.11971)
           + (1/n) sum_i eta_i KL_i, with algorithm.kl_in=loss

R_var needs the signals S_i of the whole mini-batch, so each one takes two passes: a forward pass for S, then the
backward pass of sum_i c'_i S_i with c' = dR_var/dS fixed. The first pass is free for the first mini-batch, where the
ratio is 1 and S is the rollout's signal, and for one that is a single micro-batch, whose own pass knows S before its
loss. `algorithm.group_statistics=rollout` uses the rollout's S throughout and never takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gipo_mc.algorithms.group_invariance import (
    beta_at,
    bounded_beta,
    group_statistics,
    length_factor,
    length_share,
    moments,
    relative_weight,
    signal_gradient,
)
from gipo_mc.algorithms.ppo import policy_loss_terms
from gipo_mc.config import Config
from gipo_mc.errors import NumericsError
from gipo_mc.models.micro_batch import MicroBatch, PackedBatch, run_backward, run_forward
from gipo_mc.models.readout import token_log_probs
from gipo_mc.parallel.engine import Engine, Outputs
from gipo_mc.rl.experience import Experience
from gipo_mc.rl.mini_batch import MiniBatch, mini_batches
from gipo_mc.rl.objective import Objective
from gipo_mc.rl.update_log import Progress, UpdateLog

#: How far policy and behaviour policy may be apart before an iteration's first update, in nats a token (KL): the same
#: model on the same tokens, but differently padded. Single tokens may differ more in bfloat16, so the mean decides.
_KL_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 0.02}
_ROW_OUTPUTS = ("surrogate", "clipped", "ratio_max", "behaviour_kl", "entropy")


@dataclass(frozen=True)
class PolicyLoss:
    """A micro-batch's share of the mini-batch's loss.

    objective: op B over the mini-batch's rows. signal_gradient_B: beta dR_var/dS_i of these rows, [b]: a function of
    their log-probs [B, T] where a micro-batch is all of them and no first pass was taken; None: there is no penalty.
    """

    batch: MiniBatch
    objective: Objective
    signal_gradient_B: Tensor | Callable[[Tensor], Tensor] | None
    config: Config

    def __call__(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        """ "loss", and `_ROW_OUTPUTS`, [b] each; without a first pass "logp", [b, T]."""
        config, settings = self.config, self.config.algorithm
        gradient_B = self.signal_gradient_B
        known: Outputs = {}
        if callable(gradient_B):
            known["logp"] = self._log_probs(model, hidden_LBH, part)
            gradient_B = gradient_B(torch.empty_like(known["logp"]).index_copy_(0, part.rows_B, known["logp"]))
        own = self.objective.rows(part.rows_B)
        objective, entropy_B = own.of_hidden(
            model, hidden_LBH, part, config.rollout.temperature, config.parallel.logit_rows
        )
        loss = policy_loss_terms(
            objective,
            tokens=self.batch.tokens,
            signal_gradient_B=None if gradient_B is None else gradient_B[part.rows_B],
            beta=1.0,
            entropy_sum=entropy_B.sum() if settings.entropy_coef else None,
            entropy_coef=settings.entropy_coef,
            kl_weight_B=own.inputs.kl_weight_B if settings.kl_in == "loss" else None,
        )
        return {
            "loss": loss,
            "surrogate": objective.surrogate_B,
            "clipped": objective.clipped_B,
            "ratio_max": objective.ratio_max_B,
            "behaviour_kl": objective.behaviour_kl_B,
            "entropy": entropy_B,
            **known,
        }

    @torch.no_grad()
    def _log_probs(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Tensor:
        stage = token_log_probs(self.config.rollout.temperature, self.config.parallel.logit_rows)
        return stage(model, hidden_LBH, part)["logp"]

    def backward(self, policy: Engine, packed: PackedBatch) -> dict[str, Tensor]:
        """The gradients of the whole mini-batch's loss; statistics of every row, on every rank."""
        widths = dict.fromkeys(_ROW_OUTPUTS, 0)
        if callable(self.signal_gradient_B):
            widths["logp"] = self.batch.experience.rollout.width
        return run_backward(policy, packed, self, widths)


def update_policy(
    policy: Engine, experience: Experience, config: Config, step: int, on_step: Progress | None = None
) -> dict[str, float]:
    """All policy steps of an iteration. Metrics "policy/{loss,clip_fraction,entropy,grad_norm,ratio_max,approx_kl,lr,
    skipped}" (the loss is PPO's, without the penalty), "padding/update_policy" and, where the group penalty is on,
    "policy/{beta,group_variance,weight_max,weight_negative,weight_std}".

    Raises NumericsError if the ratio of the first mini-batch is not 1: then log-probs of rollout and update differ.
    """
    log, done, settings = UpdateLog("policy"), 0, config.algorithm
    for batch in mini_batches(experience, config, step, "policy", settings.epochs, policy.layout.data):
        packed = batch.micro_batches(config.parallel, policy.layout)
        objective = Objective.of(batch.experience, config)
        gradient_B = None
        beta = beta_at(step, settings.beta_policy, settings.beta_ramp)
        if settings.penalty == "variance" and settings.group_count > 1 and beta:
            gradient_B = _penalty_gradient(policy, packed, batch, objective, beta, config, log)
        outputs = PolicyLoss(batch, objective, gradient_B, config).backward(policy, packed)
        if callable(gradient_B):  # what only the last stage has called; every rank says the same of it
            _bounded_gradient(objective, outputs["logp"], len(batch), beta, config, log)
        ratio_max = float(outputs["ratio_max"].max())
        if batch.first:
            _check_first_ratio(ratio_max, float(outputs["behaviour_kl"].sum()) / batch.tokens, policy)
        entropy = float(outputs["entropy"].sum()) / batch.tokens
        surrogate = float(outputs["surrogate"].sum()) / batch.tokens
        log.add(
            loss=-surrogate - settings.entropy_coef * entropy,
            entropy=entropy,
            clip_fraction=float(outputs["clipped"].sum()) / batch.tokens,
            approx_kl=float(outputs["behaviour_kl"].sum()) / batch.tokens,
        )
        log.largest(ratio_max=ratio_max)
        log.padding(packed.padding)
        log.step(policy.step())
        done += len(batch)
        if on_step is not None:
            on_step(done, settings.epochs * len(experience))
    return log.metrics()


def _penalty_gradient(
    policy: Engine,
    packed: PackedBatch,
    batch: MiniBatch,
    objective: Objective,
    beta: float,
    config: Config,
    log: UpdateLog,
) -> Tensor | Callable[[Tensor], Tensor]:
    """beta dR_var/dS of every sequence of the mini-batch, [b], from the first pass; or as a function of their log-probs
    [b, T], where the backward pass has them in time."""
    settings = config.algorithm

    logp_BT = objective.inputs.behaviour_logp_BT
    if not batch.first and settings.group_statistics == "exact":
        if packed.is_one_pass:
            return lambda found_BT: _bounded_gradient(objective, found_BT, len(batch), beta, config)
        stage = token_log_probs(config.rollout.temperature, config.parallel.logit_rows)
        logp_BT = run_forward(policy, packed, stage, {"logp": batch.experience.rollout.width})["logp"]
    return _bounded_gradient(objective, logp_BT, len(batch), beta, config, log)


def _bounded_gradient(
    objective: Objective, logp_BT: Tensor, rows: int, beta: float, config: Config, log: UpdateLog | None = None
) -> Tensor:
    """beta dR_var/ds, [b], for the op's s_i, where the policy has the log-probs `logp_BT` [b, T]. log: is told what it
    is like."""
    settings, (probs_BM, length_B) = config.algorithm, (objective.inputs.group_probs_BM, objective.inputs.length_B)
    found = objective.of_log_probs(logp_BT)
    weighted_M, share_B = found.weighted_M, length_share(length_B, objective.form, settings.penalty_over)
    if share_B is not None:
        moved_B = share_B * (found.signal_B - objective.inputs.behaviour_signal_B)
        _, weighted_M = group_statistics(probs_BM, objective.inputs.behaviour_signal_B + moved_B)
    statistics = moments(found.mass_M, weighted_M, rows, settings.weights)
    bounded, statistics = bounded_beta(
        beta, statistics, mass_floor=settings.mass_floor, cap=settings.reweight_cap or math.inf
    )
    if log is not None:
        factor_B = length_factor(length_B, objective.form, settings.penalty_over).to(probs_BM.dtype)
        relative_B = relative_weight(bounded, statistics, probs_BM, factor_B)
        log.add(
            beta=float(bounded),
            group_variance=float(statistics.variance),
            weight_negative=float((relative_B < 0).float().mean()),
            # Around 1, PPO's own weight: how large the penalty is beside PPO.
            weight_std=float(relative_B.std(correction=0)),
        )
        log.largest(weight_max=float(relative_B.max()))
    gradient_B = bounded * signal_gradient(statistics, probs_BM)
    return gradient_B if share_B is None else gradient_B * share_B


def _check_first_ratio(ratio_max: float, approx_kl: float, policy: Engine) -> None:
    if not approx_kl <= _KL_TOLERANCE[policy.model.config.params_dtype]:  # type: ignore[union-attr,index]
        raise NumericsError(
            f"Before the first update of an iteration the PPO ratio must be 1, but its largest value is {ratio_max:.6g}"
            f" (mean KL to the behaviour policy {approx_kl:.3g} nats a token): the log-probs of the rollout and of the "
            "update differ. Please report this with the run's config.yaml."
        )
