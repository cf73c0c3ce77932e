"""Losses of supervised training: cross entropy (SFT) and Bradley-Terry (reward model); `dpo.py` has those of DPO.

Source of the preference loss: Ouyang et al., arXiv 2203.02155 (eq. 1); its margin is that of Touvron et al., arXiv
2307.09288 (eq. 2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # target of a position that is not trained on: what op A and torch's cross entropy leave out


def cross_entropy_sum(logp_N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of -log p over the tokens that count, their number int64): a micro-batch's share.

    logp_N: [N] log-prob of the target at each packed position, 0 where ignored (op A); targets_N: int64 [N], -100
    where a position is padding or prompt. Divide by the count over the whole mini-batch and all ranks: a mean of
    per-micro-batch means would weigh tokens by the micro-batch they fell into.
    """
    counts = targets_N != IGNORED
    return -logp_N.where(counts, 0.0).sum(), counts.sum()


def preference_loss_sum(chosen_B: Tensor, rejected_B: Tensor, margin: float | Tensor = 0.0) -> Tensor:
    """Sum over pairs of -log sigmoid(r_chosen - r_rejected - margin), a scalar.

    chosen_B, rejected_B: [B] rewards read at the last response token. margin: a number or [B], in reward units.
    The caller divides by the pairs of the whole mini-batch. Equal rewards without margin cost ln 2 a pair.
    """
    return -F.logsigmoid(chosen_B - rejected_B - margin).sum()


def preference_correct(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Number of pairs ranked as labelled, a float scalar without gradient; a tie counts one half (chance)."""
    difference = (chosen_B - rejected_B).detach()
    return (0.5 * (torch.sign(difference) + 1.0)).sum()
