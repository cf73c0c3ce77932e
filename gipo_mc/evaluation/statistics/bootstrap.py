"""Intervals from a cluster bootstrap: whole conversations are drawn again, with all of their pairs, of all opponents.

The draws are a function of the seed and the number of conversations, so that every figure of a table sees the same
ones, and differences between opponents are differences in the same draws (Miller, arXiv:2411.00640, 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: One minus the confidence of every interval.
LEVEL = 0.05
#: Draws that are summed at once: some MB of weights.
_CHUNK = 256


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


class Draws:
    """`draws` times as many conversations as there are, drawn with replacement. Raises ValueError for fewer than 1."""

    def __init__(self, conversations: int, draws: int, seed: int) -> None:
        if conversations < 1 or draws < 1:
            raise ValueError("A bootstrap needs a conversation and a draw.")
        self.conversations, self.draws, self.seed = conversations, draws, seed

    def sums(self, columns_CK: Array) -> Array:
        """[draws, K]: the sum of each column over the conversations of each draw. columns_CK: integers."""
        generator = np.random.Generator(np.random.PCG64([self.seed, self.conversations]))
        found = np.empty((self.draws, columns_CK.shape[1]))
        count = self.conversations
        for start in range(0, self.draws, _CHUNK):
            chunk = min(_CHUNK, self.draws - start)
            np.matmul(times_drawn(generator, chunk, count), columns_CK, out=found[start : start + chunk])
        return found


def times_drawn(generator: np.random.Generator, draws: int, count: int) -> Array:
    """[draws, count]: how often each draw, of `count` with replacement, takes each conversation."""
    drawn = generator.integers(0, count, size=(draws, count))
    drawn += np.arange(draws)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float64)


def by_conversation(columns: Array, conversation_N: npt.NDArray[np.int64], conversations: int) -> Array:
    """[conversations, ...]: the rows of `columns` [N, ...] summed within each conversation. conversation_N: the number
    of each row's."""
    found = np.zeros((conversations, *columns.shape[1:]))
    np.add.at(found, conversation_N, columns)
    return found


def ratio(numerator: Array, denominator: Array) -> Array:
    """The ratios of those draws that hold anything of the cell. Same length for a figure and for its mirror image."""
    held = denominator > 0
    return numerator[held] / denominator[held]


def interval(value: float, drawn: Array, bounds: tuple[float, float], conversations: int) -> Interval:
    """The percentile interval, widened for few conversations and for what was not seen.

    drawn: the figure in each draw. bounds: what the figure can be at all. conversations: of the figure's own pairs.
    Percentiles: Phi(-t sqrt(C / (C - 1))) with Student's t of C - 1 degrees of freedom in place of 2.5 % (Hesterberg,
    The American Statistician 69, 2015, "expanded percentile interval"). They are order statistics, lowest and highest
    equally far from the ends: the mirrored figure has the mirrored interval, to the bit.
    """
    ordered = np.sort(drawn)
    low = high = value
    if ordered.size:
        rank = int(_tail(conversations) * ordered.size)
        low, high = float(ordered[rank]), float(ordered[-1 - rank])
    differs = ordered.size > 0 and bool(ordered[0] < ordered[-1])
    return _with_unseen(Interval(value, low, high), differs, bounds, conversations, LEVEL)


def simultaneous(
    values: Sequence[float], drawn: Sequence[Array], bounds: tuple[float, float], conversations: Sequence[int]
) -> list[Interval]:
    """Intervals that hold all of the figures at once with 95 % (bootstrap max-t): value +- q s, s the standard error.

    q is the 95 % quantile, over draws, of the largest |drawn - value| / s. The worst of several is chosen for being the
    worst; only such an interval may be quoted for it. drawn: one array of the same draws each, NaN where a draw holds
    nothing. Few conversations widen as in `interval`.
    """
    errors = [float(np.sqrt(np.nanmean((own - np.nanmean(own)) ** 2))) for own in drawn]
    largest = np.zeros(drawn[0].shape)
    for value, own, error in zip(values, drawn, errors, strict=True):
        if error > 0:
            largest = np.fmax(largest, np.abs(own - value) / error)
    quantile = float(np.sort(largest)[min(largest.size - 1, math.ceil((1 - LEVEL) * largest.size))])
    found = []
    for value, error, count in zip(values, errors, conversations, strict=True):
        half = quantile * error * _widening(count)
        plain = Interval(value, max(bounds[0], value - half), min(bounds[1], value + half))
        found.append(_with_unseen(plain, error > 0, bounds, count, LEVEL / len(values)))
    return found


def _with_unseen(
    found: Interval, differs: bool, bounds: tuple[float, float], conversations: int, level: float
) -> Interval:
    """The interval with room for what no conversation showed: C in a row miss a kind of which the share is
    p = 1 - (level / 2)^(1 / C) with probability level / 2.

    Where no conversation differs from another, a share p may have the least or the most that there is. Where some do,
    the upper end is at least what it were if all had the least, so that it never falls while the figure rises; and the
    lower end likewise. Nobody wins of 100: a bootstrap would say 0 to 0 %, this 0 to 3.6 %, as Clopper and Pearson do.
    """
    share, (least, most) = 1.0 - (level / 2) ** (1.0 / conversations), bounds
    if not differs:
        return Interval(
            found.value,
            found.value - share * (found.value - least),
            found.value + share * (most - found.value),
        )
    room = share * (most - least)
    return Interval(found.value, min(found.low, most - room), max(found.high, least + room))


def _tail(conversations: int) -> float:
    if conversations < 2:
        return 0.0
    return NormalDist().cdf(-NormalDist().inv_cdf(1 - LEVEL / 2) * _widening(conversations))


def _widening(conversations: int) -> float:
    """t sqrt(C / (C - 1)) / z: how much wider an interval of C conversations is than its draws look."""
    if conversations < 2:
        return 1.0
    freedom, z = conversations - 1, NormalDist().inv_cdf(1 - LEVEL / 2)
    # Student's t by four terms of its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5): 1 % low at 3 degrees.
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    t = z + sum(term / freedom**power for power, term in enumerate(terms, 1))
    return t / z * math.sqrt(conversations / freedom)
