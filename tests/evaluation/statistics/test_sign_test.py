"""The sign test and Holm's correction, by hand-computed values."""

import pytest

from gipo_mc.evaluation.statistics.sign_test import holm, sign_test


@pytest.mark.parametrize(
    ("ours", "theirs", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (3, 3, 1.0), (6, 0, 2 / 64), (7, 1, 18 / 256), (8, 2, 112 / 1024), (5, 4, 1.0)],
)
def test_the_exact_p(ours: int, theirs: int, p: float):
    assert sign_test(ours, theirs) == sign_test(theirs, ours) == p


def test_many_winners():
    assert sign_test(2000, 0) == 2.0**-1999 or sign_test(2000, 0) == 0.0
    assert 0.0 < sign_test(1100, 900) < 1e-4


def test_holm():
    assert holm([]) == []
    assert holm([0.02]) == [0.02]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
