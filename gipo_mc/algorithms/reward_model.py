"""Bradley-Terry loss of the reward model.

Source: Ouyang et al., arXiv 2203.02155 (eq. 1); the margin is that of Touvron et al., arXiv 2307.09288 (eq. 2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
