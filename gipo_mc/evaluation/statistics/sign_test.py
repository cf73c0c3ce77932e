"""Is one policy better at all: the exact sign test, and Holm's correction for asking it of several cells."""

from __future__ import annotations

from collections.abc import Sequence


def sign_test(ours: int, theirs: int) -> float:
    """Two-sided p of `ours` against `theirs` winners under a fair coin: min(1, 2 P(X <= min(ours, theirs))),
    X ~ Binomial(ours + theirs, 1/2). Exact, in integers; 1.0 without a winner."""
    count, least = ours + theirs, min(ours, theirs)
    term = total = 1
    for i in range(least):
        term = term * (count - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / 2**count)


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: the i-th smallest of m times m - i + 1, never below the one before it
    (Holm, Scandinavian Journal of Statistics 6, 1979). With 5 % at most, any of those up to 0.05 is chance."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
