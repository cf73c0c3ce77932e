"""How much each sequence pays for leaving the reference policy: fixed, or by its inferred group.

Source: Zheng et al., arXiv 2310.11971, adaptive KL penalty. The KL estimators k1, k2, k3 themselves
(Schulman, "Approximating KL divergence", 2020) are part of `gipo_mc.ops`, beside the sums they enter.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_GAIN, _LARGEST = 0.1, 0.2  # of the controller, an iteration: eta changes by at most 2 %


def kl_weights(
    kl_coef: float,
    group_probs_BM: Tensor,
    best_group: int | None,
    kind: Literal["adaptive", "fixed", "none", "adaptive_mean"],
) -> Tensor:
    """Weight of each sequence's KL in its token rewards, [B], dtype of `group_probs_BM`, without gradient.

    adaptive: eta_i = kl_coef * p_i,best: sequences of the group that already earns the highest reward, where reward is
        hacked first, are held to the reference; the others may explore.
    adaptive_mean: kl_coef * mean_i p_i,best for every sequence, the control that has as much KL and knows no sequence.
    fixed: kl_coef for every sequence, and for the other two while no best group is known (None). none: 0.
    With p = 1 (one group) adaptive, adaptive_mean and fixed are equal bit for bit.
    """
    if kind == "none":
        kl_coef = 0.0
    if kind in ("adaptive", "adaptive_mean") and best_group is not None:
        if not 0 <= best_group < group_probs_BM.shape[1]:
            raise ValueError(f"best_group={best_group} is not one of the {group_probs_BM.shape[1]} inferred groups.")
        high_B = group_probs_BM.detach()[:, best_group]
        return kl_coef * (high_B if kind == "adaptive" else high_B.mean().expand_as(high_B))
    return torch.full_like(group_probs_BM[:, 0], kl_coef, requires_grad=False)


def controlled(kl_coef: float, kl: float, target: float) -> float:
    """eta of the next iteration, eta (1 + 0.1 clip(kl / target - 1, -0.2, 0.2)): up where the KL is over its target.

    kl, target: nats per response. Source: Ziegler et al., arXiv 1909.08593, section 2.2.
    """
    return kl_coef * (1.0 + _GAIN * max(-_LARGEST, min(_LARGEST, kl / target - 1.0)))
