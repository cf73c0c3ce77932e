"""How far evaluators agree beyond chance: percent, Cohen's and Fleiss' kappa, Krippendorff's alpha, with intervals.

Every statistic is a function of sums over units (what is rated), so a bootstrap needs one product of matrices: how
often each conversation was drawn, times what each conversation adds to the sums.

Sources: Cohen, Educ. Psychol. Meas. 20 (1960) 37; Fleiss, Psychol. Bull. 76 (1971) 378; Krippendorff, Content Analysis,
and "Computing Krippendorff's Alpha-Reliability" (2011).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gipo_mc.evaluation.statistics.bootstrap import by_conversation, times_drawn
from gipo_mc.parallel.streams import generator

#: From sums [..., of one unit's shape] to [...].
Statistic = Callable[[np.ndarray], np.ndarray]
#: Draws that are made at a time: bounds the memory.
_BLOCK = 500
#: An interval needs so large a share of draws in which the statistic has a value.
_DEFINED = 0.95


@dataclass(frozen=True)
class Estimate:
    """value, None where it is undefined: nothing was rated twice, or all ratings are of one category, so that chance
    explains everything. low, high: 95 % interval; None where a draw in twenty or more has no value, and with less than
    two conversations."""

    value: float | None
    low: float | None = None
    high: float | None = None


def counts_of(ratings: Sequence[Sequence[int | None]], categories: int) -> np.ndarray:
    """int64 [units, categories]: how many raters gave a unit each category. ratings: by unit, None if missing."""
    found = np.zeros((len(ratings), categories), dtype=np.int64)
    for unit, given in enumerate(ratings):
        for category in given:
            if category is not None:
                found[unit, category] += 1
    return found


# ------------------------------------------------------------------------------------------------------- what units add
def coincidences(counts_UK: np.ndarray) -> np.ndarray:
    """float64 [units, K, K]: a unit's ordered pairs of ratings by its raters, each unit weighing as many ratings as it
    has. Units with fewer than two ratings add nothing."""
    n_U = counts_UK.sum(1)
    pairs = counts_UK[:, :, None] * counts_UK[:, None, :] - np.einsum(
        "uk,kj->ukj", counts_UK, np.eye(counts_UK.shape[1])
    )
    return np.where(n_U[:, None, None] > 1, pairs / np.maximum(n_U - 1, 1)[:, None, None], 0.0)


def agreements(counts_UK: np.ndarray) -> np.ndarray:
    """float64 [units, 2 + K]: share of a unit's pairs of raters that agree, 1, and its ratings by category; zeros for
    units with fewer than two ratings."""
    n_U = counts_UK.sum(1)
    agree = (counts_UK * (counts_UK - 1)).sum(1) / np.maximum(n_U * (n_U - 1), 1)
    found = np.concatenate([agree[:, None], np.ones((len(n_U), 1)), counts_UK], axis=1)
    return np.where(n_U[:, None] > 1, found, 0.0)


def crossings(first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray, categories: int) -> np.ndarray:
    """float64 [units, K, K]: 1 where the first rater's category (row) meets the second's (column)."""
    found = np.zeros((len(first), categories, categories))
    found[np.arange(len(first)), np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)] = 1
    return found


# --------------------------------------------------------------------------------- statistics of sums, NaN if undefined
def percent(sums: np.ndarray) -> np.ndarray:
    """Mean share of pairs of raters that agree, of summed `agreements` [..., 2 + K]: 0 to 1."""
    return _ratio(sums[..., 0], sums[..., 1])


def fleiss_kappa(sums: np.ndarray) -> np.ndarray:
    """Of summed `agreements` [..., 2 + K]. Where units have different numbers of raters, each unit's agreement is that
    of its own pairs of raters, and chance is that of all ratings; with equal numbers it is Fleiss' formula."""
    ratings = sums[..., 2:]
    share = _ratio(ratings, ratings.sum(-1, keepdims=True))
    return _beyond(percent(sums), (share**2).sum(-1))


def cohen_kappa(table_KK: np.ndarray) -> np.ndarray:
    """Of summed `crossings` [..., K, K]: two raters, each with marginals of its own."""
    total = table_KK.sum((-1, -2))
    seen = _ratio(np.trace(table_KK, axis1=-2, axis2=-1), total)
    return _beyond(seen, _ratio((table_KK.sum(-1) * table_KK.sum(-2)).sum(-1), total**2))


def krippendorff_alpha(sums_KK: np.ndarray, *, ordinal: bool = False) -> np.ndarray:
    """Of summed `coincidences` [..., K, K]: 1 - observed / expected disagreement.

    ordinal: categories are ranked by their number, and two of them are as far apart as there are ratings between them
    (half of those in the two counted); else all differ alike.
    """
    n_K = sums_KK.sum(-1)
    size = n_K.shape[-1]
    if ordinal:
        middle = np.cumsum(n_K, axis=-1) - n_K / 2
        distance = (middle[..., :, None] - middle[..., None, :]) ** 2
    else:
        distance = 1.0 - np.eye(size)
    observed = (sums_KK * distance).sum((-1, -2))
    expected = (n_K[..., :, None] * n_K[..., None, :] * distance).sum((-1, -2))
    return 1.0 - _ratio((n_K.sum(-1) - 1) * observed, expected)


def _beyond(seen: np.ndarray, chance: np.ndarray) -> np.ndarray:
    return _ratio(seen - chance, 1.0 - chance)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where the divisor is none, up to rounding."""
    below = np.asarray(below, dtype=np.float64)
    usable = np.abs(below) > 1e-12
    return np.where(usable, above / np.where(usable, below, 1.0), np.nan)


# ------------------------------------------------------------------------------------------------------------ intervals
def estimates(
    wanted: Sequence[tuple[np.ndarray, Statistic]], clusters: Sequence[str], *, draws: int, seed: int
) -> list[Estimate]:
    """Statistics of all units, with the intervals of a bootstrap over conversations (percentiles 2.5 and 97.5).

    wanted: what each unit adds to the sums, [units, ...], and the statistic of the sums; all in the same draws.
    clusters: conversation of each unit; units of one are drawn together. The draws depend on seed, and on how many
    conversations there are, alone.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    where = np.array([names[name] for name in clusters], dtype=np.int64)
    parts = [by_conversation(added, where, len(names)) for added, _ in wanted]
    values = [_number(statistic(part.sum(0))) for part, (_, statistic) in zip(parts, wanted, strict=True)]
    if len(names) < 2 or not draws:
        return [Estimate(value) for value in values]
    random = generator(seed, "agreement", 0, len(names))
    drawn: list[list[np.ndarray]] = [[] for _ in wanted]
    for start in range(0, draws, _BLOCK):
        block = min(_BLOCK, draws - start)
        weights = times_drawn(random, block, len(names))
        for part, (_, statistic), found in zip(parts, wanted, drawn, strict=True):
            sums = weights @ part.reshape(len(names), -1)
            found.append(statistic(sums.reshape(block, *part.shape[1:])))
    return [_estimate(value, np.concatenate(found)) for value, found in zip(values, drawn, strict=True)]


def _estimate(value: float | None, drawn: np.ndarray) -> Estimate:
    defined = drawn[np.isfinite(drawn)]
    if value is None or len(defined) <= _DEFINED * len(drawn):
        return Estimate(value)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _number(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None
