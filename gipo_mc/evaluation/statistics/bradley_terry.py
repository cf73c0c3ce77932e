"""Bradley-Terry strengths of several policies: P(i beats j) = sigmoid(b_i - b_j), ties as half a win each.

Every game of an evaluation is one of our policy, so that two opponents meet only through it: their difference then
rests on the model. Where more pairs of policies were judged, the same function uses them all.
"""

from __future__ import annotations

import numpy as np

from gipo_mc.evaluation.statistics.bootstrap import Array
from gipo_mc.evaluation.statistics.length_control import odd_tanh

#: Points of the Elo scale for one unit of strength: 400 points are odds of 10 to 1.
ELO = 400.0 / float(np.log(10.0))
_STEPS = 50


def strengths(net_DPP: Array, games_DPP: Array) -> Array:
    """[..., P] strengths relative to policy 0, in natural logarithms of odds; the maximum of the likelihood.

    net: wins of i over j minus wins of j over i (odd: net_ij = -net_ji), ties 0. games: comparisons of i with j (even);
    any scale, so that draws may have fractions. Every two policies that met in any draw are given one more tie, so that
    a policy that never wins has a finite strength. Exchanging i and j everywhere negates all, to the bit. Raises
    ValueError where a policy is not connected with policy 0.
    """
    met_PP = games_DPP.reshape(-1, *games_DPP.shape[-2:]).sum(axis=0) > 0
    _check_connected(met_PP)
    games = games_DPP + met_PP
    found = np.zeros(net_DPP.shape[:-1])
    for _ in range(_STEPS):
        mean = odd_tanh((found[..., :, None] - found[..., None, :]) / 2)
        gradient = ((net_DPP - games * mean) / 2).sum(axis=-1)[..., 1:]
        weight = games * (1 - mean**2) / 4
        information = -weight
        places = np.arange(weight.shape[-1])
        information[..., places, places] += weight.sum(axis=-1)
        step = np.linalg.solve(information[..., 1:, 1:], gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=-1, keepdims=True, initial=0.0)
        found[..., 1:] += step * np.minimum(1.0, 2.0 / np.maximum(longest, 1e-300))
        if longest.max(initial=0.0) < 1e-10:
            break
    return found


def _check_connected(met_PP: np.ndarray) -> None:
    reached = np.zeros(len(met_PP), dtype=bool)
    reached[0] = True
    for _ in range(len(met_PP)):
        reached |= met_PP[reached].any(axis=0)
    if not reached.all():
        raise ValueError(f"Policies {np.flatnonzero(~reached).tolist()} met none that met policy 0.")
