"""The shape of a reward distribution: its lower tail, and how heavy its tails are. A mean hides both."""

from __future__ import annotations

import math

from torch import Tensor


def lower_tail(values_B: Tensor, share: float = 0.1) -> float:
    """Mean of the lowest `share` of the values [B], at least one of them; 0 of none."""
    count = math.ceil(share * values_B.numel() - 1e-9)
    if not values_B.numel():
        return 0.0
    return float(values_B.detach().double().sort().values[: max(count, 1)].mean())


def excess_kurtosis(values_B: Tensor) -> float:
    """m_4 / m_2^2 - 3 with the central moments m_k of the values [B]: 0 of a normal distribution, -2 (the least) of
    two equal halves, large where few values lie far out. 0 where nothing varies."""
    if not values_B.numel():
        return 0.0
    values = values_B.detach().double()
    centred = values - values.mean()
    variance = float(centred.square().mean())
    if variance <= (1e-7 * float(values.abs().max())) ** 2:
        return 0.0
    return float(centred.pow(4).mean()) / variance**2 - 3.0
