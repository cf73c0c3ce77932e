"""The shape of a reward distribution: its lower tail, how heavy its tails are, and which values lie so far out that
they are no measurement. A mean hides the first two and is decided by the last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: A value this close to the median is never an outlier, whatever the others are: a reward of 1 among zeros is news.
OUTLIER_FLOOR = 10.0
#: The same where more than nine tenths are equal and nothing is known of their reach: rare successes are no outliers.
SPARSE_FLOOR = 1000.0
#: Share of a batch that decides how far its values reach; up to the rest may be outliers.
REACH_SHARE = 0.9


def reach_of(values_B: Tensor) -> float:
    """The distance from the median that nine tenths of the values [B] keep to, in their units; 0 of none."""
    if not values_B.numel():
        return 0.0
    distance_B = _from_median(values_B).abs().sort().values
    return float(distance_B[int(REACH_SHARE * (len(distance_B) - 1))])


def winsorised(values_B: Tensor, multiple: float, reach: float = 0.0) -> tuple[Tensor, Tensor]:
    """(values with outliers set to the nearest value that is none, which are outliers: bool [B]).

    An outlier is farther from the median than `multiple` times the reach of the batch, than `multiple` times `reach`,
    its usual one, and than `OUTLIER_FLOOR` (`SPARSE_FLOOR` where both are 0). Without outliers, or with multiple 0, the
    first is `values_B` itself. values_B: [B], finite.
    """
    widest = max(reach_of(values_B), reach)
    limit = max(multiple * widest, OUTLIER_FLOOR if widest else SPARSE_FLOOR)
    far_B = _from_median(values_B).abs() > limit if multiple else torch.zeros_like(values_B, dtype=torch.bool)
    if not bool(far_B.any()):
        return values_B, far_B
    kept = values_B[~far_B]
    return values_B.clamp(kept.min(), kept.max()), far_B


def _from_median(values_B: Tensor) -> Tensor:
    values = values_B.detach().double()
    return values - values.median() if values.numel() else values


def lower_tail(values_B: Tensor, share: float = 0.1) -> float:
    """Mean of the lowest `share` of the values [B], at least one of them; 0 of none."""
    count = math.ceil(share * values_B.numel() - 1e-9)
    if not values_B.numel():
        return 0.0
    return float(values_B.detach().double().sort().values[: max(count, 1)].mean())


def quantiles(values_B: Tensor, shares: Sequence[float]) -> list[float]:
    """The quantiles of the values [B] at `shares` of [0, 1], between two values in proportion; 0 of none."""
    if not values_B.numel():
        return [0.0] * len(shares)
    values = values_B.detach().double()
    return torch.quantile(values, values.new_tensor(shares)).tolist()


def skewness(values_B: Tensor) -> float:
    """m_3 / m_2^1.5 with the central moments m_k of the values [B]: 0 of a symmetric distribution, below 0 where few
    values lie far under the others. 0 where nothing varies."""
    variance, centred = _centred(values_B)
    return float(centred.pow(3).mean()) / variance**1.5 if variance else 0.0


def excess_kurtosis(values_B: Tensor) -> float:
    """m_4 / m_2^2 - 3 with the central moments m_k of the values [B]: 0 of a normal distribution, -2 (the least) of
    two equal halves, large where few values lie far out. 0 where nothing varies."""
    variance, centred = _centred(values_B)
    return float(centred.pow(4).mean()) / variance**2 - 3.0 if variance else 0.0


def _centred(values_B: Tensor) -> tuple[float, Tensor]:
    """(variance, values less their mean); a variance of 0 where rounding is all that varies."""
    values = values_B.detach().double()
    if not values.numel():
        return 0.0, values
    centred = values - values.mean()
    variance = float(centred.square().mean())
    return variance if variance > (1e-7 * float(values.abs().max())) ** 2 else 0.0, centred
