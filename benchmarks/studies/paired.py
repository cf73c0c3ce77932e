"""Paired comparisons over seeds. Two methods of a seed share reference, prompts and random numbers, so that what is
compared is the difference of a seed; over seeds it gets a t interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

#: 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


@dataclass(frozen=True)
class Interval:
    """Mean of `count` differences and its 95 % interval, mean +- half; wins: how many differences are above 0."""

    mean: float
    half: float
    wins: int
    count: int

    @property
    def verdict(self) -> int:
        """1 if the interval lies above 0, -1 below, 0 if it holds 0."""
        return 0 if abs(self.mean) <= self.half else 1 if self.mean > 0 else -1


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t, to 0.1 % above 16 degrees of freedom (Cornish-Fisher expansion)."""
    if freedom < 1:
        raise ValueError("An interval needs at least two differences.")
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(differences: Sequence[float]) -> Interval:
    """mean +- t_{n-1} s / sqrt(n), s with n - 1 in the denominator. Raises ValueError for fewer than two."""
    count = len(differences)
    quantile = t_quantile(count - 1)
    mean = math.fsum(differences) / count
    variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1)
    return Interval(mean, quantile * math.sqrt(variance / count), sum(d > 0 for d in differences), count)


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of the t test that the mean of the differences is 0. Raises ValueError for fewer than two.

    The distribution of t has a finite sum for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    found, freedom = interval(differences), len(differences) - 1
    error = found.half / t_quantile(freedom)
    if not error:
        return 0.0 if found.mean else 1.0
    angle = math.atan(abs(found.mean) / error / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    inside = math.sin(angle) * total
    return max(0.0, 1.0 - (2.0 * (angle + inside) / math.pi if odd else inside))


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """Interval of one - other over the seeds that both have; None where they share fewer than two."""
    shared = sorted(set(one) & set(other))
    return interval([one[seed] - other[seed] for seed in shared]) if len(shared) > 1 else None


def best_value(scores: Mapping[T, Sequence[float]]) -> T:
    """The candidate with the highest mean score; of equal ones the first. Raises ValueError where there is none."""
    if not scores:
        raise ValueError("There is no candidate to choose from.")
    return max(scores, key=lambda value: sum(scores[value]) / len(scores[value]))


def levels(row: Mapping[str, float]) -> dict[str, float]:
    """The figures of one evaluation: gold, proxy_<domain> and kl_<domain>, and over the domains that were trained on
    ("ood" was not) mean, proxy and kl; on the built-in task, whose domains have one scale, worst and mixture too."""
    gold = {domain: row[f"gold/domain/{domain}"] for domain in _domains(row)}
    proxy, kl = ({d: row[f"{key}/domain/{d}"] for d in gold} for key in ("eval/reward", "eval/kl"))
    trained = [domain for domain in gold if domain != "ood"]
    found = {
        **gold,
        **{f"proxy_{domain}": value for domain, value in proxy.items()},
        **{f"kl_{domain}": value for domain, value in kl.items()},
        "mean": sum(gold[domain] for domain in trained) / len(trained),
        "proxy": sum(proxy[domain] for domain in trained) / len(trained),
        "kl": sum(kl[domain] for domain in trained) / len(trained),
    }
    if set(trained) == {"easy", "hard"}:
        found |= {"worst": min(gold["easy"], gold["hard"]), "mixture": 0.8 * gold["easy"] + 0.2 * gold["hard"]}
    return found


def figures(outcome: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one run: those of its last evaluation, and tail and kurtosis of both rewards by domain. {} of a
    run that failed.

    worst, other than on the built-in task: the smaller gain over the policy that the run started from, since a reward
    model's levels of two domains are no common scale.
    """
    final: Mapping[str, float] = outcome.get("final") or {}
    if not final:
        return {}
    found = levels(final)
    for name, key in _SHAPE.items():
        found |= {f"{name}_{domain}": final[f"{key}/{domain}"] for domain in _domains(final)}
    if "worst" not in found:
        start = levels(next(row for row in outcome["curve"] if row["step"] == 0))
        gains = {f"gain_{domain}": found[domain] - start[domain] for domain in _domains(final)}
        found |= gains | {"worst": min(gains.values())}
    return found


_SHAPE = {
    "tail": "gold/lowest_tenth",
    "kurtosis": "gold/kurtosis",
    "proxy_tail": "eval/reward/lowest_tenth",
    "proxy_kurtosis": "eval/reward/kurtosis",
}


def _domains(row: Mapping[str, float]) -> list[str]:
    prefix = "gold/domain/"
    return [name.removeprefix(prefix) for name in row if name.startswith(prefix)]
