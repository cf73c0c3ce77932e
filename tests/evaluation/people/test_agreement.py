"""The statistics against examples of the literature, each worked out by hand in a comment, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from gipo_mc.evaluation.people.agreement import (
    agreements,
    cohen_kappa,
    coincidences,
    counts_of,
    crossings,
    estimates,
    fleiss_kappa,
    krippendorff_alpha,
    percent,
)

# Krippendorff (2011), four observers (A to D), twelve units, five values, missing data. By unit, with the last two that
# one observer alone or two rated:
_FOUR = [
    [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
    [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, 3, None, None],
]  # fmt: skip
# Fleiss' kappa, 10 subjects by 14 raters and five categories, an example that many texts share.
_TEN = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def _estimate(added, clusters, statistic, **options):
    (found,) = estimates([(added, statistic)], clusters, **options)
    return found


def _alpha(ratings, categories: int, *, ordinal: bool = False) -> float:
    shifted = [[None if r is None else r - 1 for r in unit] for unit in ratings]
    return float(krippendorff_alpha(coincidences(counts_of(shifted, categories)).sum(0), ordinal=ordinal))


def test_alpha_of_four_observers():
    # Coincidences o_ck, sum over units of (ordered pairs c, k) / (ratings - 1), unit 12 having one rating left out:
    #   unit 1: 1 1 1 -> 11: 6/2 = 3            unit 6: 1 2 3 4 -> every two different values: 1/3 each way
    #   unit 2: 2 2 3 2 -> 22: 6/3 = 2, 23, 32: 1 each        unit 8: 1 1 2 1 -> 11: 2, 12, 21: 1 each
    #   units 3, 4: 33: 4 each   5, 9: 22: 4 each   7: 44: 4   10: 5 5 5 -> 55: 3   11: 1 1 -> 11: 2
    # so 11: 7, 22: 10, 33: 8, 44: 4, 55: 3, 12: 4/3, 13: 1/3, 14: 1/3, 23: 4/3, 24: 1/3, 34: 1/3 (each way),
    # n_1 = 9, n_2 = 13, n_3 = 10, n_4 = 5, n_5 = 3, n = 40.
    # Nominal: observed, outside of the diagonal, 40 - 32 = 8. Expected: n^2 - sum n_c^2 = 1600 - 384 = 1216.
    #   alpha = 1 - 39 * 8 / 1216 = 0.743421
    assert _alpha(_FOUR, 5) == pytest.approx(1 - 39 * 8 / 1216, abs=1e-12) == pytest.approx(0.743, abs=5e-4)
    # Ordinal: ranks between c and k, (sum of n_c ... n_k) - (n_c + n_k)/2: middles 4.5, 15.5, 27, 34.5, 38.5, so
    #   d12 = 11, d13 = 22.5, d14 = 30, d15 = 34, d23 = 11.5, d24 = 19, d25 = 23, d34 = 7.5, d35 = 11.5, d45 = 4.
    # observed, both ways: 2 * (4/3 * 121 + 1/3 * 506.25 + 1/3 * 900 + 4/3 * 132.25 + 1/3 * 361 + 1/3 * 56.25)
    #   = 2 * (1013 + 1823.5) / 3 = 1891
    # expected: 2 * (9*13*121 + 9*10*506.25 + 9*5*900 + 9*3*1156 + 13*10*132.25 + 13*5*361 + 13*3*529 + 10*5*56.25
    #   + 10*3*132.25 + 5*3*16) = 2 * (14157 + 45562.5 + 40500 + 31212 + 17192.5 + 23465 + 20631 + 2812.5 + 3967.5
    #   + 240) = 399480
    assert _alpha(_FOUR, 5, ordinal=True) == pytest.approx(1 - 39 * 1891 / 399480, abs=1e-12)
    assert _alpha(_FOUR, 5, ordinal=True) == pytest.approx(0.815, abs=5e-4), "as published"


def test_alpha_of_two_observers_of_two_values():
    # Krippendorff (2011), ten units: A 0 1 0 0 0 0 0 0 1 0, B 1 1 1 0 0 1 0 0 0 0. Four disagree (units 1, 3, 6, 9), so
    # o_01 = 4; value 0: 8 of A, 6 of B: n_0 = 14, n_1 = 6, n = 20. alpha = 1 - 19 * (2 * 4) / (2 * 14 * 6) = 0.095238
    one, two = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    pairs = [[a + 1, b + 1] for a, b in zip(one, two, strict=True)]
    assert _alpha(pairs, 2) == pytest.approx(1 - 19 * 8 / 168, abs=1e-12) == pytest.approx(0.095, abs=5e-4)
    assert _alpha(pairs, 2, ordinal=True) == pytest.approx(_alpha(pairs, 2)), "two values have one distance"


def test_fleiss_kappa():
    # P_i = (sum of squares - 14) / (14 * 13): 1, 0.253, 0.308, 0.440, 0.330, 0.462, 0.242, 0.176, 0.286, 0.286; for the
    # second 4 + 36 + 16 + 4 = 60, 46 / 182. Numerators: 182, 46, 56, 80, 60, 84, 44, 32, 52, 52; mean 688 / 1820.
    # p_j of columns 20, 28, 39, 21, 32 of 140: chance (400 + 784 + 1521 + 441 + 1024) / 19600 = 4170 / 19600.
    sums = agreements(np.array(_TEN)).sum(0)
    seen, chance = 688 / 1820, 4170 / 19600
    assert percent(sums) == pytest.approx(seen, abs=1e-12)
    assert fleiss_kappa(sums) == pytest.approx((seen - chance) / (1 - chance), abs=1e-12)
    assert fleiss_kappa(sums) == pytest.approx(0.210, abs=5e-4), "as published"


def test_fleiss_kappa_with_unequal_numbers_of_raters():
    # Units 3:0, 1:1, and 0:1, which has nobody to agree with. Agreements 1 and 0: 1/2. Ratings 4 and 1 of 5: chance
    # 16/25 + 1/25 = 17/25; kappa = (1/2 - 17/25) / (8/25) = -9/16.
    assert fleiss_kappa(agreements(np.array([[3, 0], [1, 1], [0, 1]])).sum(0)) == pytest.approx(-9 / 16)


def test_cohen_kappa():
    # 50 grants, both yes 20, A alone 5, B alone 10, both no 15: seen 0.7; A says yes 25/50, B 30/50: chance
    # 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa 0.4.
    table = np.array([[20, 5], [10, 15]])
    one = [0] * 25 + [1] * 25
    two = [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15
    assert (crossings(one, two, 2).sum(0) == table).all()
    assert cohen_kappa(table) == pytest.approx(0.4)
    # Equal agreement of 60 %, other margins: (45, 15; 25, 15) of 100: chance 0.6*0.7 + 0.4*0.3 = 0.54, kappa 3/23;
    # (25, 35; 5, 35): chance 0.6*0.3 + 0.4*0.7 = 0.46, kappa 7/27.
    both = cohen_kappa(np.array([[[45, 15], [25, 15]], [[25, 35], [5, 35]]]))
    assert both == pytest.approx([3 / 23, 7 / 27]), "and a batch of tables at once"


def test_what_chance_explains_is_undefined():
    alike = [[1, 1], [1, 1], [1, 1]]
    assert np.isnan(_alpha(alike, 3)) and np.isnan(_alpha(alike, 3, ordinal=True))
    assert np.isnan(cohen_kappa(crossings([1], [1], 3).sum(0)))
    assert np.isnan(fleiss_kappa(agreements(counts_of(alike, 3)).sum(0)))
    assert percent(agreements(counts_of(alike, 3)).sum(0)) == 1
    nothing = np.zeros((0, 3), dtype=int)
    assert _estimate(agreements(nothing), [], percent, draws=10, seed=0).value is None


def test_opposite_raters():
    one, two = [0, 2] * 20, [2, 0] * 20
    assert cohen_kappa(crossings(one, two, 3).sum(0)) == pytest.approx(-1)
    assert _alpha([[a + 1, b + 1] for a, b in zip(one, two, strict=True)], 3) < -0.9


def test_ordinal_alpha_forgives_a_tie_rather_than_a_reversal():
    # The second rater disagrees in 6 of 30 units, with a neighbour or with the opposite.
    base = [0, 1, 2] * 10
    near = [1, *base[1:6], 1, *base[7:12], 1, *base[13:18], 1, *base[19:24], 1, *base[25:]]
    far = [2 if a != b else b for a, b in zip(base, near, strict=True)]
    ordinal = [
        _alpha([[a + 1, b + 1] for a, b in zip(base, other, strict=True)], 3, ordinal=True) for other in (near, far)
    ]
    assert ordinal[0] > ordinal[1] + 0.05


def test_the_interval_is_by_conversation():
    # 40 conversations of 5 pairs that agree or disagree together: as wide as with 40 pairs, and wider than with 200.
    rng = np.random.default_rng(3)
    agree = np.repeat(rng.random(40) < 0.7, 5)
    counts = np.where(agree[:, None], [2, 0], [1, 1])
    together = [str(i // 5) for i in range(200)]
    options = {"draws": 2000, "seed": 5}
    clustered = _estimate(agreements(counts), together, percent, **options)
    alone = _estimate(agreements(counts), list(map(str, range(200))), percent, **options)
    fewer = _estimate(agreements(counts[::5]), together[::5], percent, **options)
    assert clustered.value == alone.value == fewer.value == pytest.approx(agree.mean())
    assert (clustered.low, clustered.high) == (fewer.low, fewer.high)
    assert clustered.high - clustered.low > 1.8 * (alone.high - alone.low)
    share = agree.mean()
    assert clustered.high - clustered.low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 40), rel=0.1)
    assert _estimate(agreements(counts), together, percent, **options) == clustered, "the same seed, the same bits"
    assert _estimate(agreements(counts), ["one"] * 200, percent, **options).low is None


def test_the_interval_covers():
    """Two raters who agree with probability 0.8, 60 conversations of 1 to 3 pairs: about 95 % of intervals hold 0.8.
    (1,500 repetitions each with two seeds: 93.9 and 93.7 %; percentiles are a little narrow.)"""
    rng = np.random.default_rng(7)
    held, repetitions = 0, 600
    for trial in range(repetitions):
        sizes = rng.integers(1, 4, 60)
        where = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
        shift = np.repeat(rng.uniform(-0.2, 0.2, 60), sizes)
        agree = rng.random(len(where)) < 0.8 + shift
        found = _estimate(agreements(np.where(agree[:, None], [2, 0], [1, 1])), where, percent, draws=400, seed=trial)
        held += found.low <= 0.8 <= found.high
    assert 0.91 * repetitions <= held <= 0.97 * repetitions


def test_no_interval_where_many_draws_have_no_value():
    # One dissenting conversation of 20: more than a third of the draws miss it, and then chance explains all.
    counts = np.array([[1, 1]] + [[2, 0]] * 19)
    found = _estimate(coincidences(counts), list(map(str, range(20))), krippendorff_alpha, draws=500, seed=1)
    assert found.value is not None and found.low is None and found.high is None
