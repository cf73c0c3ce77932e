"""How many pairs a comparison needs: the power of the exact sign test, before anything is paid for."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

#: Probabilities beyond this many standard deviations are left out: below 1e-12.
_REACH = 7.5
#: More pairs than this would not be found by anybody's budget.
_MOST_PAIRS = 1_000_000
#: From here on the normal approximation stands for the sum: they differ by less than 0.005.
_EXACT_PAIRS = 4_000


def power(pairs: int, win: float, tie: float, lose: float, level: float = 0.05) -> float:
    """Probability that the two-sided exact sign test at `level` finds a difference in `pairs` independent pairs.

    win, tie, lose: shares that are expected, 0 to 1; their sum may differ from 1 by rounding. Pairs of one conversation
    are not independent: count conversations. With 0.404, 0.337 and 0.259 it is 0.39 at 100 pairs, 0.78 at 245 and 0.89
    at 327; the normal approximation, (|d| sqrt(n) - z sqrt(w + l)) / sqrt(w + l - d^2) with d = w - l, says 0.43, 0.80
    and 0.90. Raises ValueError for shares that are none.
    """
    win, lose = _shares(win, tie, lose)
    decided = win + lose
    if pairs < 1 or decided == 0:
        return 0.0
    if pairs > _EXACT_PAIRS:
        return _approximate(pairs, win, lose, level)
    middle, reach = pairs * decided, _REACH * math.sqrt(pairs * decided * (1 - decided)) + 1
    found = 0.0
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, pairs + 1)))])
    weights = _binomial(pairs, decided, log_factorial)
    for count in range(max(1, math.floor(middle - reach)), min(pairs, math.ceil(middle + reach)) + 1):
        fair = np.cumsum(_binomial(count, 0.5, log_factorial))
        rejected = int(np.searchsorted(fair, level / 2, side="right"))  # 0 .. rejected - 1 winners reject
        if rejected:
            own = _binomial(count, win / decided, log_factorial)
            found += float(weights[count] * (own[:rejected].sum() + own[-rejected:].sum()))
    return min(1.0, found)


def pairs_needed(win: float, tie: float, lose: float, wanted: float = 0.8, level: float = 0.05) -> int | None:
    """The fewest pairs, by bisection, whose `power` reaches `wanted`; None where win equals lose, or beyond a million.

    Raises ValueError for shares that are none.
    """
    checked = _shares(win, tie, lose)
    if checked[0] == checked[1]:
        return None
    low, high = 0, 8
    while power(high, win, tie, lose, level) < wanted:
        low, high = high, 2 * high
        if high > _MOST_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, win, tie, lose, level) >= wanted else (middle, high)
    return high


def _shares(win: float, tie: float, lose: float) -> tuple[float, float]:
    total = win + tie + lose
    if min(win, tie, lose) < 0 or not 0.98 <= total <= 1.02:
        raise ValueError(f"The shares {win:g}, {tie:g}, {lose:g} are no win, tie and lose: each at least 0, in all 1.")
    return win / total, lose / total


def _binomial(count: int, share: float, log_factorial: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """P(X = 0 .. count) of a binomial."""
    k = np.arange(count + 1)
    if share in (0.0, 1.0):
        return (k == share * count).astype(np.float64)
    ways = log_factorial[count] - log_factorial[: count + 1] - log_factorial[count::-1]
    return np.exp(ways + k * math.log(share) + (count - k) * math.log1p(-share))


def _approximate(pairs: int, win: float, lose: float, level: float) -> float:
    normal, difference, decided = NormalDist(), abs(win - lose), win + lose
    spread = math.sqrt(max(decided - difference**2, 1e-12))
    return normal.cdf((difference * math.sqrt(pairs) - normal.inv_cdf(1 - level / 2) * math.sqrt(decided)) / spread)
