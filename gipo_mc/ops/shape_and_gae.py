"""Op C: shaped rewards, generalised advantage estimation and whitening sums in one pass over the rollout batch.

    r_t = -kl_weight_i KL_t + 1[t = T_i - 1] reward_i
    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}  (Schulman et al., arXiv 1506.02438)

KL_t is the k1, k2 or k3 estimate between the behaviour policy and the reference; V after the last token is 0.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gipo_mc.ops import checks, native, reference
from gipo_mc.ops.results import ShapedAdvantages

_OP = "shape_and_gae"
SUM_FIELDS = 3  # kSumFields of csrc/shape_and_gae.h: tokens, sum and sum of squares of their advantages


def _fake_forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    values_BT, reward_B = inputs[2], inputs[3]
    reward_BT, advantage_BT, return_BT = (reward_B.new_empty(values_BT.shape) for _ in range(3))
    return (
        reward_BT,
        advantage_BT,
        return_BT,
        torch.empty_like(reward_B),
        reward_B.new_empty(SUM_FIELDS, dtype=torch.float64),
    )


@native.op("shape_and_gae", _fake_forward)
def _forward(
    behaviour_logp_BT: Tensor,
    reference_logp_BT: Tensor,
    values_BT: Tensor,
    reward_B: Tensor,
    length_B: Tensor,
    kl_weight_B: Tensor,
    gamma: float,
    lam: float,
    estimator: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """reward, advantage, return [B, T], kl [B], and (count, sum, sum of squares) float64 [3]."""
    tokens = [x.contiguous() for x in (behaviour_logp_BT, reference_logp_BT, values_BT)]
    vectors = [x.contiguous() for x in (reward_B, length_B, kl_weight_B)]
    batch, time = values_BT.shape
    outputs = _fake_forward(*tokens, reward_B)
    rows_3B = reward_B.new_empty((SUM_FIELDS, batch))  # per-row sums on their way to the total
    native.call(
        "shape_and_gae",
        values_BT.device,
        *(*map(native.address, tokens), native.code(values_BT), batch, time),
        *(*map(native.address, vectors), gamma, lam, estimator),
        *map(native.address, (*outputs[:4], rows_3B, outputs[4])),
    )
    return outputs


def shape_and_gae(
    behaviour_logp_BT: Tensor,
    reference_logp_BT: Tensor,
    values_BT: Tensor,
    reward_B: Tensor,
    length_B: Tensor,
    kl_weight_B: Tensor,
    *,
    gamma: float,
    lam: float,
    kl_estimator: Literal["k1", "k2", "k3"],
) -> ShapedAdvantages:
    """Rewards, advantages and returns of B responses; see `ShapedAdvantages` for the outputs. No gradient.

    behaviour_logp_BT, reference_logp_BT, values_BT: [B, T], one float dtype; entries at t >= length never matter.
    reward_B [B], reward units, given at the last token; kl_weight_B [B], eta_i; both float32 (float64 when
        values_BT is). length_B: int64 [B], tokens, 0 <= length <= T.
    gamma, lam in [0, 1]. kl_estimator: "k1", "k2", "k3".
    Raises TypeError or ValueError for wrong input.
    """
    checks.floats(_OP, "values_BT", values_BT)
    if values_BT.dim() != 2:
        raise ValueError(f"{_OP}: values_BT has shape {list(values_BT.shape)}; give [B, T].")
    (batch, time), device = values_BT.shape, values_BT.device
    wide = checks.accumulator(values_BT.dtype)
    checks.like(_OP, "behaviour_logp_BT", behaviour_logp_BT, (batch, time), values_BT.dtype, device)
    checks.like(_OP, "reference_logp_BT", reference_logp_BT, (batch, time), values_BT.dtype, device)
    checks.like(_OP, "reward_B", reward_B, (batch,), wide, device)
    checks.like(_OP, "kl_weight_B", kl_weight_B, (batch,), wide, device)
    checks.lengths(_OP, length_B, batch, time, device)
    for name, value in (("gamma", gamma), ("lam", lam)):
        checks.number(_OP, name, value, low=0.0)
        if value > 1.0:
            raise ValueError(f"{_OP}: {name}={value} must be at most 1.")
    estimator = checks.choice(_OP, "kl_estimator", kl_estimator, checks.ESTIMATORS)
    inputs = (behaviour_logp_BT, reference_logp_BT, values_BT, reward_B, length_B, kl_weight_B)
    tensors = [x.detach() for x in inputs]
    if native.use_reference():
        return reference.shape_and_gae(*tensors, gamma=gamma, lam=lam, kl_estimator=kl_estimator)
    *shaped, sums_3 = _forward(*tensors, gamma, lam, estimator)
    return ShapedAdvantages(*shaped, *sums_3.unbind())
