"""The signal S_i of a sequence: what R_g = sum_i p_ig S_i / P_g is made of.

    value:     S_i = agg_t X_it                       X: reward r_i, gain r_i - b(x_i) over the reference, disagreement
                                                      of several reward models, return-to-go G_it, or advantage A_it
    log_prob:  S_i = agg_t log pi(a_it | s_it) X_it   (Zheng et al., arXiv 2310.11971, with X = A and a sum)

agg is the mean or the sum over the response tokens. "value" does not depend on the policy's parameters: the policy
penalty then adds a mean of (ratio_it - 1) A_it over tokens (`group_invariance.length_share`: of which responses), whose
value is 0 at the behaviour policy and whose gradient is PPO's.
Normalised, S is centred and divided by its running standard deviation (and X with it), so that beta means the same at
every reward scale; R_var does not depend on the centre.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gipo_mc.algorithms.advantages import response_mask

STD_FLOOR = 1e-8


def token_signal(
    signal: Literal["reward", "gain", "disagreement", "return", "advantage"],
    whole_B: Tensor,
    return_BT: Tensor,
    advantage_BT: Tensor,
) -> Tensor:
    """X_it, [B, T]: the return-to-go, the advantage as PPO uses it, or what the other signals say of the whole response
    (`whole_B`), at every token."""
    if signal == "return":
        return return_BT
    return advantage_BT if signal == "advantage" else whole_B.to(return_BT.dtype)[:, None].expand_as(return_BT)


def sequence_signal(
    token_signal_BT: Tensor,
    length_B: Tensor,
    tokens: Literal["mean", "sum"],
    logp_BT: Tensor | None = None,
) -> Tensor:
    """S_i, [B]: mean or sum of X_it over the response, of log pi X where `logp_BT` [B, T] is given.

    length_B: int64 [B]. A response without tokens has S = 0. Padding never matters.
    """
    mask = response_mask(length_B, token_signal_BT.shape[1])
    terms_BT = token_signal_BT if logp_BT is None else logp_BT * token_signal_BT
    sum_B = torch.where(mask, terms_BT, 0.0).double().sum(dim=1)
    if tokens == "mean":
        sum_B = sum_B / length_B.clamp(min=1)
    return sum_B.to(token_signal_BT.dtype)


def ema(old: float | None, new: float, decay: float) -> float:
    """Exponential moving average that begins with the first value instead of a bias towards 0."""
    return new if old is None else decay * old + (1.0 - decay) * new


def running_std(old: float | None, signal_B: Tensor, decay: float) -> float:
    """EMA of the batch's standard deviation, begun with the first batch. It runs, rather than being the batch's, so
    that a batch whose signals hardly differ is not blown up."""
    std = float(signal_B.detach().double().std(correction=0)) if len(signal_B) else 0.0
    if old is None or not len(signal_B):
        return std if old is None else old
    return decay * old + (1.0 - decay) * std


def normalised(signal_B: Tensor, std: float) -> Tensor:
    """(S_i - batch mean) / running std, [B]. A std of 0 (all signals equal so far) gives 0."""
    signal64_B = signal_B.detach().double()
    centred_B = signal64_B - signal64_B.mean() if len(signal_B) else signal64_B
    return (centred_B / max(std, STD_FLOOR)).to(signal_B.dtype)
