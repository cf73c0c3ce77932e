"""Power of the sign test, against enumeration, simulation, and what is known of the paper's shares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gipo_mc.evaluation.statistics.power import pairs_needed, power
from gipo_mc.evaluation.statistics.sign_test import sign_test

PAPER = (0.404, 0.337, 0.259)


@pytest.mark.parametrize(("pairs", "known"), [(100, 0.38), (245, 0.80), (327, 0.90)])
def test_the_papers_shares(pairs: int, known: float):
    """`known`: the normal approximation says 80 and 90 %, simulation of the test 38 %."""
    assert power(pairs, *PAPER) == pytest.approx(known, abs=0.025)


def test_the_pairs_of_a_wanted_power():
    assert pairs_needed(*PAPER) == pytest.approx(245, rel=0.06)
    needed = pairs_needed(*PAPER, wanted=0.9)
    assert needed == pytest.approx(327, rel=0.06)
    assert needed is not None and power(needed, *PAPER) >= 0.9 > power(needed - 1, *PAPER)
    assert pairs_needed(0.3, 0.4, 0.3) is None
    assert pairs_needed(0.3001, 0.4, 0.2999) is None  # more than a million


def test_against_all_outcomes_of_seven_pairs():
    shares = {1: 0.7, 0: 0.2, -1: 0.1}
    found = 0.0
    for outcomes in itertools.product(shares, repeat=7):
        if sign_test(outcomes.count(1), outcomes.count(-1)) <= 0.05:
            found += float(np.prod([shares[outcome] for outcome in outcomes]))
    assert power(7, 0.7, 0.2, 0.1) == pytest.approx(found, rel=1e-9)


def test_edges():
    assert power(0, *PAPER) == 0.0
    assert power(5, 1.0, 0.0, 0.0) == 0.0 and power(6, 1.0, 0.0, 0.0) == 1.0
    assert power(100, 0.0, 1.0, 0.0) == 0.0
    assert power(60, 0.0, 0.5, 0.5) == pytest.approx(power(60, 0.5, 0.5, 0.0))
    assert power(100, *PAPER, level=0.01) < power(100, *PAPER)
    assert power(4000, 0.30, 0.44, 0.26) == pytest.approx(power(4001, 0.30, 0.44, 0.26), abs=0.01)
    for shares in [(0.5, 0.6, 0.5), (-0.1, 0.6, 0.5), (40.4, 33.7, 25.9)]:
        with pytest.raises(ValueError, match="no win, tie and lose"):
            power(100, *shares)
