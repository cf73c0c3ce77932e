"""The margin that would be seen if both responses were of the same length.

A logistic regression of who wins on tanh of the difference of lengths, in standard deviations, and a constant,
predicted at difference 0 (Dubois et al., "Length-Controlled AlpacaEval", arXiv:2404.04475, 2024; without its difficulty
of an instruction, which belongs to its own prompts, and without its penalty on the slope).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gipo_mc.evaluation.statistics.bootstrap import Array
from gipo_mc.evaluation.statistics.outcomes import GRID

#: Steps of Newton's method, and the parameters beyond which there is no finite maximum.
_STEPS, _FARTHEST = 60, 15.0


@dataclass(frozen=True)
class Fit:
    """E[margin] = tanh((constant + slope x) / 2), x = tanh(difference of lengths / its standard deviation).

    columns_N5: what each pair adds to gradient (2) and information (00, 01, 11), in units of 1/GRID: a draw's sums give
    one Newton step from here, which stands for a new fit (Moulton and Zeyl, "Bootstrapping generalized linear models",
    1991).
    """

    constant: float
    slope: float
    columns_N5: Array

    @property
    def margin(self) -> float:
        return float(odd_tanh(np.float64(self.constant / 2)))


def odd_tanh(x: Array | np.float64) -> Array:
    """tanh with tanh(-x) = -tanh(x) to the bit, whatever instructions compute it."""
    return np.copysign(np.tanh(np.abs(x)), x)


def fit(margin_N: Array, difference_N: Array) -> Fit | str:
    """The fit, or a sentence that says why there is none.

    margin_N: in -1 .. 1, ties 0; the quasi-likelihood takes what lies between. difference_N: our length minus theirs.
    Everything is odd or even in the sides: exchanging them negates constant and margin, to the bit.
    """
    deviation = float(np.sqrt(np.mean((difference_N - np.mean(difference_N)) ** 2)))
    if np.all(difference_N > 0) or np.all(difference_N < 0):
        side = "longer" if difference_N[0] > 0 else "shorter"
        return f"our response is the {side} one in every pair: nothing is known about equal lengths"
    if deviation == 0:
        return "both responses have the same length in every pair: there is nothing to control"
    if np.all(np.abs(margin_N) == 1) and np.all(margin_N == margin_N[0]):
        return "one policy wins every pair: the regression has no finite solution"
    x_N = odd_tanh(difference_N / deviation)
    constant = slope = 0.0
    for _ in range(_STEPS):
        step, turn = map(float, _newton(_columns(margin_N, x_N, constant, slope).sum(axis=0)))
        longest = max(abs(step), abs(turn))
        shortened = min(1.0, 2.0 / longest) if longest else 1.0
        constant, slope = constant + shortened * step, slope + shortened * turn
        if not longest < math.inf or max(abs(constant), abs(slope)) > _FARTHEST:
            break
        if longest < 1e-10:
            return Fit(constant, slope, np.rint(GRID * _columns(margin_N, x_N, constant, slope)))
    return "length and winner go together too closely: the regression has no finite solution"


def margins_drawn(found: Fit, sums_D5: Array) -> Array:
    """[D] the margin in each draw, by one Newton step from the fit; NaN where a draw holds no two lengths.

    sums_D5: sums of the fit's columns over each draw.
    """
    step_D, _ = _newton(sums_D5)
    return odd_tanh((found.constant + step_D) / 2)


def _columns(margin_N: Array, x_N: Array, constant: float, slope: float) -> Array:
    """[N, 5] gradient and information of each pair's quasi-log-likelihood in (constant, slope), both times 2."""
    mean_N = odd_tanh((constant + slope * x_N) / 2)
    rest_N, weight_N = margin_N - mean_N, (1 - mean_N**2) / 2
    return np.stack([rest_N, rest_N * x_N, weight_N, weight_N * x_N, weight_N * x_N**2], axis=1)


def _newton(sums: Array) -> tuple[Array, Array]:
    """The Newton step of (constant, slope) for sums of columns [..., 5]; NaN where the information is singular."""
    g0, g1, h00, h01, h11 = np.moveaxis(sums, -1, 0)
    determinant = h00 * h11 - h01**2
    # The columns are rounded to 1/GRID: what is left of the determinant of a single length is below this.
    determinant = np.where(determinant > 1e-5 * h00 * h11, determinant, np.nan)
    return (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
