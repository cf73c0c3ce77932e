"""What each candidate for the signal S knows of the known domains, so that a user sees which of them could find them.

The classifier can only find what S tells it. Where rows have labels (for evaluation; no method but an oracle reads
them), an iteration logs how well each number of a response, by itself, tells the domains apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gipo_mc.algorithms.advantages import response_mask
from gipo_mc.rl.experience import Experience
from gipo_mc.rl.hacking.metrics import domain_rows


def domain_aucs(values_SB: Tensor, domains: Sequence[str]) -> Tensor:
    """float64 [S]: how well each of S numbers tells the domains apart, `association.domain_auc` of one column.

    For each domain against the rest max(AUC, 1 - AUC), averaged over the domains; ties count one half.
    """
    names = sorted(set(domains))
    values = values_SB.detach().double()
    if len(names) < 2:
        return values.new_full((len(values),), 0.5)
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values, right=False)
    rank_SB = (below + torch.searchsorted(ordered, values, right=True) + 1).double() / 2.0
    found = []
    for name in names:
        member_B = torch.tensor([domain == name for domain in domains], device=values.device)
        count = int(member_B.sum())
        area_S = (rank_SB[:, member_B].sum(1) - count * (count + 1) / 2.0) / (count * (len(domains) - count))
        found.append(torch.maximum(area_S, 1.0 - area_S))
    return torch.stack(found).mean(0)


def learned_metrics(experience: Experience) -> dict[str, float]:
    """ "gain/..." and "disagreement/...", means of an iteration, whole and by domain, where the run has them; and
    `signal_metrics`."""
    outputs, rollout = experience.outputs, experience.rollout
    there = {"gain": outputs.gain_B} if outputs.level_B is not None else {}
    there |= {"disagreement": outputs.disagreement_B} if outputs.disagreement_B is not None else {}
    metrics = {f"{name}/mean": float(values_B.mean()) for name, values_B in there.items()}
    for domain, rows in domain_rows(rollout.domain_B).items():
        metrics |= {f"{name}/domain/{domain}": float(values_B[rows].mean()) for name, values_B in there.items()}
    return metrics | signal_metrics(experience)


def signal_metrics(experience: Experience) -> dict[str, float]:
    """ "signal/auc/<name>" of every candidate that the run has; nothing where rows have one domain.

    reward, gain, disagreement: as in algorithm.signal. return, advantage: their mean over the response. kl: nats a
    response. value_error: mean |return - value| over the response (with a critic). length: tokens.
    """
    rollout, outputs = experience.rollout, experience.outputs
    if len(set(rollout.domain_B)) < 2:
        return {}
    length_B = rollout.sequences.response_length_B
    mask_BT = response_mask(length_B, rollout.width)

    def mean(values_BT: Tensor) -> Tensor:
        return values_BT.where(mask_BT, 0.0).sum(1) / length_B.clamp(min=1)

    candidates = {
        "reward": outputs.reward_B,
        "gain": outputs.gain_B if outputs.level_B is not None else None,
        "disagreement": outputs.disagreement_B,
        "return": mean(experience.return_BT),
        "advantage": mean(experience.inputs.advantage_BT),
        "kl": experience.kl_B,
        "value_error": mean((experience.return_BT - outputs.values_BT).abs())
        if bool(outputs.values_BT.any())
        else None,
        "length": length_B.to(outputs.reward_B.dtype),
    }
    there = {name: values_B for name, values_B in candidates.items() if values_B is not None}
    aucs = domain_aucs(torch.stack(list(there.values())), rollout.domain_B).tolist()
    return {f"signal/auc/{name}": value for name, value in zip(there, aucs, strict=True)}
