"""How strongly two things go together: (partial) correlation, AUC and mutual information, for the diagnostics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def correlation(x_B: Tensor, y_B: Tensor) -> float:
    """Pearson correlation of two [B] tensors, in [-1, 1]; 0 where one of them does not vary (or B < 2)."""
    if x_B.numel() < 2:
        return 0.0
    x, y = x_B.detach().double(), y_B.detach().double()
    # A constant in fp32 keeps rounding noise around its mean: spread under 1e-7 of the size is no variation.
    for values in (x, y):
        if float(values.max() - values.min()) <= 1e-7 * float(values.abs().max()):
            return 0.0
    x, y = x - x.mean(), y - y.mean()
    return max(-1.0, min(1.0, float((x @ y) / (x.norm() * y.norm()))))


def partial_correlation(x_B: Tensor, y_B: Tensor, given_B: Tensor) -> float:
    """Correlation of x and y at equal `given`, (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)), all [B].

    In [-1, 1]; 0 where `given` alone determines one of them, which leaves nothing to go together.
    """
    xy, xz, yz = correlation(x_B, y_B), correlation(x_B, given_B), correlation(y_B, given_B)
    left = (1.0 - xz * xz) * (1.0 - yz * yz)
    return max(-1.0, min(1.0, (xy - xz * yz) / left**0.5)) if left > 1e-9 else 0.0


def auc(value_B: Tensor, positive_B: Tensor) -> float:
    """Area under the ROC curve: the chance that a positive lies above a negative, ties one half (Mann-Whitney).

    value_B: [B]; positive_B: bool [B]. 0.5 when one of the classes has no members.
    """
    positive = value_B[positive_B].detach().double()
    negative = value_B[~positive_B].detach().double().sort().values
    if not positive.numel() or not negative.numel():
        return 0.5
    below = torch.searchsorted(negative, positive, right=False)
    not_above = torch.searchsorted(negative, positive, right=True)
    return float((below + not_above).double().mean()) / (2 * negative.numel())


def domain_auc(group_probs_BM: Tensor, domains: Sequence[str]) -> float:
    """How well the inferred groups tell the known domains apart, whichever way round they are labelled.

    For each domain against the rest, the best of max(AUC, 1 - AUC) over the groups; the mean over domains. In
    [0.5, 1]; 0.5 for one domain. With two domains and two groups it is the ordinary AUC.
    """
    names = sorted(set(domains))
    if len(names) < 2:
        return 0.5
    best = []
    for name in names:
        member_B = torch.tensor([domain == name for domain in domains], device=group_probs_BM.device)
        areas = [auc(probs_B, member_B) for probs_B in group_probs_BM.unbind(1)]
        best.append(max(max(area, 1.0 - area) for area in areas))
    return sum(best) / len(best)


def mutual_information(group_probs_BM: Tensor, domains: Sequence[str]) -> float:
    """I(domain; group) in nats from the soft joint P(d, g) = (1/B) sum_{i in d} p_ig; 0 without rows."""
    names = sorted(set(domains))
    if not names:
        return 0.0
    probs_BM = group_probs_BM.detach().double()
    index_B = torch.tensor([names.index(domain) for domain in domains], device=probs_BM.device)
    joint_DM = probs_BM.new_zeros(len(names), probs_BM.shape[1]).index_add_(0, index_B, probs_BM) / len(domains)
    independent_DM = joint_DM.sum(1, keepdim=True) * joint_DM.sum(0, keepdim=True)
    ratio_DM = torch.where(joint_DM > 0, joint_DM / independent_DM.clamp(min=1e-300), 1.0)
    return max(0.0, float((joint_DM * ratio_DM.log()).sum()))
