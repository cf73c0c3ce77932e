"""Tail, kurtosis and outliers, by hand."""

from __future__ import annotations

import pytest
import torch

from gipo_mc.algorithms.distribution import excess_kurtosis, lower_tail, quantiles, reach_of, skewness, winsorised


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


def test_the_reach_is_the_distance_that_nine_tenths_keep_to() -> None:
    values_B = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1e30])  # median 5; 5 - 0 is the tenth
    assert reach_of(values_B) == 5.0
    assert reach_of(torch.empty(0)) == 0.0 and reach_of(torch.tensor([7.0])) == 0.0


@pytest.mark.parametrize("value", [1e4, 1e30, -1e30, -9999.0])
def test_an_outlier_becomes_the_nearest_value_that_is_none(value: float) -> None:
    values_B = torch.tensor([0.0, 1.0, 2.0, value, 3.0, 4.0])
    found_B, far_B = winsorised(values_B, 20.0)
    assert found_B.tolist() == [0.0, 1.0, 2.0, 4.0 if value > 0 else 0.0, 3.0, 4.0]
    assert far_B.tolist() == [False, False, False, True, False, False]


def test_what_is_no_outlier_is_the_same_tensor() -> None:
    normal_B = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    for values_B, multiple, reach in (
        (100.0 * normal_B, 20.0, 0.0),
        (torch.tensor([0.0] * 63 + [100.0]), 20.0, 0.0),  # a rare success
        (torch.tensor([0.0] * 56 + [0.1] * 7 + [10.0]), 20.0, 0.0),  # rare, but no more than 10 away
        (torch.tensor([0.0] * 63 + [1e4]), 20.0, 501.0),  # usual before this batch
        (torch.tensor([0.0] * 8 + [1e9, 1e9]), 20.0, 0.0),  # what more than a tenth shares
        (torch.tensor([0.0] * 63 + [1e4]), 0.0, 0.0),  # off
        (torch.empty(0), 20.0, 0.0),
    ):
        found_B, far_B = winsorised(values_B, multiple, reach)
        assert found_B is values_B and not bool(far_B.any())


def test_quantiles_lie_between_values() -> None:
    assert quantiles(torch.tensor([3.0, 1.0, 2.0, 0.0]), [0.0, 0.5, 0.9, 1.0]) == pytest.approx([0.0, 1.5, 2.7, 3.0])
    assert quantiles(torch.tensor([7.0]), [0.01, 0.99]) == [7.0, 7.0]
    assert quantiles(torch.empty(0), [0.1, 0.9]) == [0.0, 0.0]


def test_skew_by_hand() -> None:
    # Nine zeros and a ten: mean 1, m_2 = 9, m_3 = (-9 + 729) / 10.
    values_B = torch.tensor([0.0] * 9 + [10.0])
    assert skewness(values_B) == pytest.approx(72.0 / 27.0)
    assert skewness(-3 * values_B + 7) == pytest.approx(-72.0 / 27.0)
    assert skewness(torch.tensor([-2.0, 0.0, 2.0])) == 0.0
    assert skewness(torch.full((5,), 0.1)) == 0.0 and skewness(torch.empty(0)) == 0.0
