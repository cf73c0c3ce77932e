"""Direct preference optimisation from four sequence log-probs, with IPO and conservative DPO by option.

Sources: DPO: Rafailov et al., arXiv 2305.18290 (eq. 7); IPO: Azar et al., arXiv 2310.12036 (eq. 17); conservative
DPO: Mitchell, "A note on DPO with noisy preferences", 2023.

pi(y|x) is the probability of the whole response in all of them, so log-probs are sums over its tokens, in IPO too: its
h is drawn to 1 / (2 beta) nats whatever the lengths. TRL (pull request 1265, after asking the authors of IPO) and those
who follow it put means over tokens in IPO's place; a beta of theirs is, at T response tokens, about T times ours.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def dpo_loss(
    chosen_logp_B: Tensor,
    rejected_logp_B: Tensor,
    reference_chosen_logp_B: Tensor,
    reference_rejected_logp_B: Tensor,
    *,
    beta: float,
    variant: Literal["dpo", "ipo"] = "dpo",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(loss_B, margin_B) of preference pairs; all tensors [B], sums of response-token log-probs in nats.

    h = (chosen - reference_chosen) - (rejected - reference_rejected);
    dpo: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e = label_smoothing, the share of flipped labels
        (0: plain DPO); at h = 0 it is ln 2;
    ipo: (h - 1 / (2 beta))^2, label_smoothing must be 0.
    margin_B = beta h (detached), the difference of implicit rewards: positive where a pair is ranked as labelled.
    Differentiable with respect to the first two. Raises ValueError for a combination that has no meaning.
    """
    if beta <= 0:
        raise ValueError(f"beta={beta} must be positive: it divides (IPO) or scales (DPO) the log-ratios.")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 0.5): more would prefer the rejected.")
    h_B = (chosen_logp_B - reference_chosen_logp_B.detach()) - (rejected_logp_B - reference_rejected_logp_B.detach())
    margin_B = beta * h_B
    if variant == "ipo":
        if label_smoothing:
            raise ValueError("label_smoothing is an option of dpo, not of ipo: set it to 0.")
        return (h_B - 1.0 / (2.0 * beta)).square(), margin_B.detach()
    loss_B = -F.logsigmoid(margin_B)
    if label_smoothing:
        loss_B = (1.0 - label_smoothing) * loss_B - label_smoothing * F.logsigmoid(-margin_B)
    return loss_B, margin_B.detach()
