"""What the ops return, the same from the native kernels and from the eager references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

T = TypeVar("T")


class TokenStatistics(NamedTuple):
    """Op A. float32 [N] (float64 for float64 logits), both differentiable with respect to the logits.

    logp_N: log-probability of the target token, 0 where the target is ignored.
    entropy_N: entropy in nats of the whole next-token distribution, 0 where the target is ignored.
    """

    logp_N: Tensor
    entropy_N: Tensor


class GroupObjective(NamedTuple):
    """Op B. float32 (float64 for float64 log-probs).

    Differentiable with respect to the log-probs (signal, surrogate, kl, weighted, weighted_kl) and to the group
    probabilities (mass, weighted); the other fields are statistics without gradient.

    signal_B: s_i, the sequence's signal. surrogate_B: sum over tokens of min(ratio A, clip(ratio) A).
    kl_B: sum over tokens of the KL estimate to the reference. clipped_B: number of tokens whose clip is active.
    ratio_max_B: largest ratio of a token. behaviour_kl_B: sum over tokens of ratio - 1 - log ratio.
    mass_M: sum_i p_ig. weighted_M: sum_i p_ig s_i. weighted_kl: scalar, sum_i kl_weight_i kl_i.
    """

    signal_B: Tensor
    surrogate_B: Tensor
    kl_B: Tensor
    clipped_B: Tensor
    ratio_max_B: Tensor
    behaviour_kl_B: Tensor
    mass_M: Tensor
    weighted_M: Tensor
    weighted_kl: Tensor

    @classmethod
    def of_buffers(cls, sequence_6B: Tensor, sums_2M1: Tensor) -> GroupObjective:
        """Views of what a kernel writes: the six fields a sequence, then masses, weighted signals and weighted KL."""
        groups = sums_2M1.shape[0] // 2
        mass_M, weighted_M, weighted_kl = sums_2M1.split((groups, groups, 1))
        return cls._make((*sequence_6B.unbind(), mass_M, weighted_M, weighted_kl.squeeze(0)))


def differentiable_fields(upstream: Sequence[T]) -> tuple[T, ...]:
    """Of what belongs to the fields of a GroupObjective, that of the fields with a gradient."""
    return (*upstream[:3], *upstream[6:9])


class TokenObjective(NamedTuple):
    """Ops A and B joined. float32 (float64 for float64 logits), differentiable with respect to the logits.

    objective: op B's outputs, as differentiable as there. entropy_B: sum over a sequence's tokens of the entropy in
    nats of the whole next-token distribution.
    """

    objective: GroupObjective
    entropy_B: Tensor


class GroupVariance(NamedTuple):
    """R_g [M] (0 for an empty group), their weighted mean and their weighted variance (scalars)."""

    objective_M: Tensor
    mean: Tensor
    variance: Tensor


class ShapedAdvantages(NamedTuple):
    """Op C. float32 [B, T] and [B] (float64 for float64 inputs), 0 in the padding; no gradient.

    reward_BT: shaped rewards. advantage_BT: GAE, not whitened. return_BT: advantage + value, the critic's target.
    kl_B: sum over tokens of the unweighted KL estimate.
    count, sum, sum_sq: float64 scalars over the valid tokens' advantages, for whitening over all ranks.
    """

    reward_BT: Tensor
    advantage_BT: Tensor
    return_BT: Tensor
    kl_B: Tensor
    count: Tensor  # type: ignore[assignment]  # in the place of tuple.count, which nobody needs here
    sum: Tensor
    sum_sq: Tensor
