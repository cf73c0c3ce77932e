"""Tail and kurtosis, by hand."""

from __future__ import annotations

import pytest
import torch

from gipo_mc.algorithms.distribution import excess_kurtosis, lower_tail


def test_lower_tail_is_the_mean_of_the_lowest_tenth() -> None:
    values_B = torch.arange(20.0).flip(0)
    assert lower_tail(values_B) == 0.5  # of 0 and 1
    assert lower_tail(values_B, 0.25) == 2.0
    assert lower_tail(torch.arange(30.0)) == 1.0  # 0.1 x 30 is three, whatever its rounding
    assert lower_tail(torch.tensor([3.0, 1.0])) == 1.0  # at least one
    assert lower_tail(torch.empty(0)) == 0.0


def test_kurtosis_by_hand() -> None:
    assert excess_kurtosis(torch.tensor([-1.0, 1.0, -1.0, 1.0])) == pytest.approx(-2.0)
    # Nine zeros and a ten: mean 1, m_2 = (9 + 81) / 10, m_4 = (9 + 6561) / 10.
    values_B = torch.tensor([0.0] * 9 + [10.0])
    assert excess_kurtosis(values_B) == pytest.approx(657.0 / 81.0 - 3.0)
    assert excess_kurtosis(values_B * -3 + 7) == pytest.approx(657.0 / 81.0 - 3.0)
    generator = torch.Generator().manual_seed(0)
    assert excess_kurtosis(torch.randn(200_000, generator=generator)) == pytest.approx(0.0, abs=0.05)
    assert excess_kurtosis(torch.full((5,), 0.1)) == 0.0 and excess_kurtosis(torch.empty(0)) == 0.0
