"""Where the group probabilities p_ig come from: a classifier, or one of the controls that replace it.

GI-PPO infers them (Zheng et al., arXiv 2310.11971). The controls answer what the inference itself is worth: the known
domains (an oracle: the method is told what it is meant to find), the reward alone (is a response above the mean?) or
its gain over the reference, equal probabilities, and one group for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["classifier", "none", "domain", "reward", "gain", "uniform"]


def domain_probabilities(domains: Sequence[str], names: Sequence[str]) -> Tensor:
    """float32 [B, M]: 1 for each sequence's known domain. names: all M of them, in the order of their groups."""
    position = {name: group for group, name in enumerate(names)}
    unknown = sorted(set(domains) - set(position))
    if unknown:
        raise ValueError(f"The domains {', '.join(unknown)} are none of the {len(names)} that were known at the start.")
    index_B = torch.tensor([position[domain] for domain in domains], dtype=torch.int64)
    return torch.nn.functional.one_hot(index_B, len(names)).float()


def threshold_probabilities(reward_B: Tensor, mean: float) -> Tensor:
    """float32 [B, 2]: p_i0 = 1[reward_i > mean], p_i1 = 1 - p_i0."""
    above_B = (reward_B.double() > mean).float()
    return torch.stack([above_B, 1.0 - above_B], dim=1)


def most_likely(group_probs_BM: Tensor) -> Tensor:
    """Hard assignment: 1 for the likeliest group of each sequence (the first, on a tie), 0 for the others."""
    return torch.nn.functional.one_hot(group_probs_BM.argmax(dim=1), group_probs_BM.shape[1]).to(group_probs_BM.dtype)


@dataclass(frozen=True)
class GroupSource:
    """Group probabilities of a rollout batch, as the policy side uses them. Equal on every rank.

    kind: where they come from. groups: M. domains: names of the known domains ("domain" only), in the order of their
    groups. hard: 1 for the likeliest group instead of p.
    """

    kind: Kind
    groups: int
    domains: tuple[str, ...] = ()
    hard: bool = False

    @property
    def oracle(self) -> bool:
        """Is the method told what it would not know?"""
        return self.kind == "domain"

    def __call__(
        self, classifier_BM: Tensor, reward_B: Tensor, domains: Sequence[str], reward_mean: float | None
    ) -> Tensor:
        """p, float32 [B, M], rows sum to 1, without gradient.

        classifier_BM: p_phi of these sequences (read by "classifier" only). reward_B: their raw rewards, on the device
        of the result ("gain": their gains). domains: their labels. reward_mean: what "reward" and "gain" compare with.
        """
        if self.kind == "classifier":
            probs_BM = classifier_BM.detach()
        elif self.kind == "domain":
            probs_BM = domain_probabilities(domains, self.domains).to(reward_B.device)
        elif self.kind in ("reward", "gain"):
            assert reward_mean is not None, "the rewards of the batch are tracked before they are compared"
            probs_BM = threshold_probabilities(reward_B, reward_mean)
        else:
            probs_BM = torch.full((len(reward_B), self.groups), 1.0 / self.groups, device=reward_B.device)
        return most_likely(probs_BM) if self.hard else probs_BM
