"""How much each sequence pays for leaving the reference policy: fixed, or by its inferred group.

Source: Zheng et al., arXiv 2310.11971, adaptive KL penalty. The KL estimators k1, k2, k3 themselves
(Schulman, "Approximating KL divergence", 2020) are part of `gipo_mc.ops`, beside the sums they enter.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_weights(kl_coef: float, group_probs_BM: Tensor, best_group: int | None, adaptive: bool) -> Tensor:
    """Weight of each sequence's KL in its token rewards, [B], dtype of `group_probs_BM`, without gradient.

    adaptive: eta_i = kl_coef * p_phi(best_group | x_i, y_i): sequences of the group that already earns the highest
        reward, where reward is hacked first, are held to the reference; the others may explore.
    Otherwise, and while no best group is known (None): kl_coef for every sequence.
    With p = 1 (one group) the two are equal bit for bit.
    """
    if adaptive and best_group is not None:
        if not 0 <= best_group < group_probs_BM.shape[1]:
            raise ValueError(f"best_group={best_group} is not one of the {group_probs_BM.shape[1]} inferred groups.")
        return kl_coef * group_probs_BM.detach()[:, best_group]
    return torch.full_like(group_probs_BM[:, 0], kl_coef, requires_grad=False)
