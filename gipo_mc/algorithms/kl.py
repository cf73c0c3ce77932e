"""How much each sequence pays for leaving the reference policy: fixed, or by its inferred group.

Source: Zheng et al., arXiv 2310.11971, adaptive KL penalty. The KL estimators k1, k2, k3 themselves
(Schulman, "Approximating KL divergence", 2020) are part of `gipo_mc.ops`, beside the sums they enter.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gipo_mc.ops import checks

_OP = "kl_weights"
_KINDS = ("adaptive", "fixed", "none", "adaptive_mean")
_GAIN, _LARGEST = 0.1, 0.2  # of the controller, an iteration: eta changes by at most 2 %


def kl_weights(
    kl_coef: float,
    group_probs_BM: Tensor,
    best_group: int | Tensor | None,
    kind: Literal["adaptive", "fixed", "none", "adaptive_mean"],
) -> Tensor:
    """Weight of each sequence's KL in its token rewards or in the loss, [B], without gradient; float32 (float64 for
    float64 probabilities), as `group_objective` takes it.

    kl_coef: eta, at least 0. group_probs_BM: floating [B, M], rows that sum to 1. best_group: position of a
    group, an integer or a tensor of one (of argmax, say).

    adaptive: eta_i = kl_coef * p_i,best: sequences of the group that already earns the highest reward, where reward is
        hacked first, are held to the reference; the others may explore.
    adaptive_mean: kl_coef * mean_i p_i,best for every sequence, the control that has as much KL and knows no sequence.
    fixed: kl_coef for every sequence, and for the other two while no best group is known (None). none: 0.
    With p = 1 (one group) adaptive, adaptive_mean and fixed are equal bit for bit.

    Raises TypeError or ValueError for wrong input; the values of the probabilities are looked at on the CPU.
    """
    checks.choice(_OP, "kind", kind, _KINDS)
    checks.number(_OP, "kl_coef", kl_coef, low=0.0)
    checks.probabilities(_OP, "group_probs_BM", group_probs_BM)
    checks.rows_add_up(_OP, "group_probs_BM", group_probs_BM)
    probs_BM = group_probs_BM.detach().to(checks.accumulator(group_probs_BM.dtype))
    if best_group is not None:
        high_B = probs_BM[:, checks.group(_OP, best_group, probs_BM.shape[1])]
        if kind == "adaptive":
            return float(kl_coef) * high_B
        if kind == "adaptive_mean":
            return float(kl_coef) * high_B.mean().expand_as(high_B)
    return torch.full_like(probs_BM[:, 0], 0.0 if kind == "none" else float(kl_coef))


def controlled(kl_coef: float, kl: float, target: float) -> float:
    """eta of the next iteration, eta (1 + 0.1 clip(kl / target - 1, -0.2, 0.2)): up where the KL is over its target.

    kl, target: nats per response. Source: Ziegler et al., arXiv 1909.08593, section 2.2.
    """
    return kl_coef * (1.0 + _GAIN * max(-_LARGEST, min(_LARGEST, kl / target - 1.0)))
