"""Supervised fine-tuning: cross entropy of response tokens."""

from __future__ import annotations

from torch import Tensor

IGNORED = -100  # target of a position that is not trained on: what op A and torch's cross entropy leave out


def cross_entropy_sum(logp_N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of -log p over the tokens that count, their number int64): a micro-batch's share.

    logp_N: [N] log-prob of the target at each packed position, 0 where ignored (op A); targets_N: int64 [N], -100
    where a position is padding or prompt. Divide by the count over the whole mini-batch and all ranks: a mean of
    per-micro-batch means would weigh tokens by the micro-batch they fell into.
    """
    counts = targets_N != IGNORED
    return -logp_N.where(counts, 0.0).sum(), counts.sum()
