"""Eager references of the native ops: same signatures, plain torch and its autograd, any float dtype and device.

They say what the kernels must compute, in the fewest words, and are slow: every op materialises its intermediates.
`GIPO_MC_OPS=reference` makes the public ops use them. Half-precision inputs are computed in float32.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from gipo_mc.ops.checks import IGNORED_TARGET, KlEstimator, SignalForm, accumulator
from gipo_mc.ops.results import GroupObjective, ShapedAdvantages, TokenObjective, TokenStatistics


def token_statistics(
    logits_NV: Tensor,
    targets_N: Tensor,
    *,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    inplace_backward: bool = False,
) -> TokenStatistics:
    """See `gipo_mc.ops.token_statistics`. With `group` every rank computes on the whole vocabulary: its own columns
    carry gradient, those of the other ranks are constants. `inplace_backward` has no effect here."""
    ignored_N = targets_N == IGNORED_TARGET
    scaled_NV = logits_NV.to(accumulator(logits_NV.dtype)).masked_fill(ignored_N[:, None], 0.0) / temperature
    first = vocab_start
    if group is not None and dist.get_world_size(group) > 1:
        shards = [torch.empty_like(scaled_NV) for _ in range(dist.get_world_size(group))]
        dist.all_gather(shards, scaled_NV.detach().contiguous(), group=group)
        shards[dist.get_rank(group)] = scaled_NV
        scaled_NV, first = torch.cat(shards, dim=1), 0
    if vocab_size is not None:
        ids_V = first + torch.arange(scaled_NV.shape[1], device=scaled_NV.device)
        scaled_NV = scaled_NV.masked_fill(ids_V >= vocab_size, -torch.inf)

    logp_NV = torch.log_softmax(scaled_NV, dim=1)
    column_N = targets_N - first
    present_N = (column_N >= 0) & (column_N < logp_NV.shape[1])
    logp_N = logp_NV.gather(1, column_N.where(present_N, 0)[:, None]).squeeze(1)
    logp_N = logp_N.masked_fill(~present_N, -torch.inf).masked_fill(ignored_N, 0.0)
    entropy_N = -(logp_NV.exp() * logp_NV.masked_fill(logp_NV == -torch.inf, 0.0)).sum(1)
    return TokenStatistics(logp_N, entropy_N.masked_fill(ignored_N, 0.0))


def kl_estimate(logp: Tensor, reference_logp: Tensor, estimator: KlEstimator) -> Tensor:
    """Estimate of KL(pi || reference) from one sample of pi (Schulman, "Approximating KL divergence", 2020).

    k1 = log pi - log ref; k2 = k1^2 / 2; k3 = ref/pi - 1 - log(ref/pi). Elementwise."""
    difference = logp - reference_logp
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.expm1(-difference) + difference


def group_objective(
    logp_BT: Tensor,
    behaviour_logp_BT: Tensor,
    reference_logp_BT: Tensor,
    advantage_BT: Tensor,
    length_B: Tensor,
    group_probs_BM: Tensor,
    behaviour_signal_B: Tensor,
    kl_weight_B: Tensor,
    *,
    clip: float,
    kl_estimator: KlEstimator,
    signal_form: SignalForm,
) -> GroupObjective:
    """See `gipo_mc.ops.group_objective`."""
    wide = accumulator(logp_BT.dtype)
    valid_BT = torch.arange(logp_BT.shape[1], device=logp_BT.device) < length_B[:, None]
    current, behaviour, reference, advantage = (
        x.to(wide).masked_fill(~valid_BT, 0.0)
        for x in (logp_BT, behaviour_logp_BT.detach(), reference_logp_BT.detach(), advantage_BT.detach())
    )
    behaviour_signal_B, kl_weight_B = behaviour_signal_B.detach(), kl_weight_B.detach()
    difference = current - behaviour
    ratio = difference.exp()
    token_mean = 1.0 / length_B.clamp(min=1).to(wide)

    unclipped, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    if signal_form == "ratio":
        signal_B = behaviour_signal_B + (torch.expm1(difference) * advantage).sum(1) * token_mean
    else:
        signal_B = (current * advantage).sum(1) * (1.0 if signal_form == "log_prob" else token_mean)
    kl_B = kl_estimate(current, reference, kl_estimator).sum(1)
    statistics = (ratio * valid_BT).detach()
    return GroupObjective(
        signal_B=signal_B,
        surrogate_B=torch.minimum(unclipped, clipped).sum(1),
        kl_B=kl_B,
        clipped_B=(clipped < unclipped).sum(1).to(wide),
        ratio_max_B=statistics.amax(1) if logp_BT.shape[1] else torch.zeros_like(behaviour_signal_B),
        behaviour_kl_B=kl_estimate(behaviour, current.detach(), "k3").sum(1),
        mass_M=group_probs_BM.sum(0),
        weighted_M=(group_probs_BM * signal_B[:, None]).sum(0),
        weighted_kl=(kl_weight_B * kl_B).sum(),
    )


def token_objective(
    logits_NV: Tensor,
    targets_N: Tensor,
    behaviour_logp_BT: Tensor,
    reference_logp_BT: Tensor,
    advantage_BT: Tensor,
    length_B: Tensor,
    group_probs_BM: Tensor,
    behaviour_signal_B: Tensor,
    kl_weight_B: Tensor,
    *,
    clip: float,
    kl_estimator: KlEstimator,
    signal_form: SignalForm,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    inplace_backward: bool = False,
) -> TokenObjective:
    """See `gipo_mc.ops.token_objective`: `token_statistics`, then `group_objective`."""
    tokens = token_statistics(logits_NV, targets_N, vocab_size=vocab_size, temperature=temperature)
    valid_BT = torch.arange(advantage_BT.shape[1], device=length_B.device) < length_B[:, None]
    logp_BT, entropy_BT = (x.new_zeros(valid_BT.shape).masked_scatter(valid_BT, x) for x in tokens)
    objective = group_objective(
        logp_BT,
        behaviour_logp_BT,
        reference_logp_BT,
        advantage_BT,
        length_B,
        group_probs_BM,
        behaviour_signal_B,
        kl_weight_B,
        clip=clip,
        kl_estimator=kl_estimator,
        signal_form=signal_form,
    )
    return TokenObjective(objective, entropy_BT.sum(1))


@torch.no_grad()
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
    kl_estimator: KlEstimator,
) -> ShapedAdvantages:
    """See `gipo_mc.ops.shape_and_gae`."""
    wide = accumulator(values_BT.dtype)
    batch, time = values_BT.shape
    position_T = torch.arange(time, device=values_BT.device)
    valid_BT = position_T < length_B[:, None]
    behaviour, reference, values = (
        x.to(wide).masked_fill(~valid_BT, 0.0) for x in (behaviour_logp_BT, reference_logp_BT, values_BT)
    )
    kl_BT = kl_estimate(behaviour, reference, kl_estimator)
    last_BT = position_T == length_B[:, None] - 1
    reward_BT = torch.where(last_BT, reward_B[:, None], 0.0) - kl_weight_B[:, None] * kl_BT
    reward_BT = reward_BT.masked_fill(~valid_BT, 0.0)

    advantage_BT = torch.zeros_like(values)
    later_B = next_value_B = values.new_zeros(batch)
    for t in range(time - 1, -1, -1):
        delta_B = reward_BT[:, t] + gamma * next_value_B - values[:, t]
        later_B = torch.where(valid_BT[:, t], delta_B + gamma * lam * later_B, 0.0)
        advantage_BT[:, t], next_value_B = later_B, values[:, t]
    exact = advantage_BT.double()
    return ShapedAdvantages(
        reward_BT=reward_BT,
        advantage_BT=advantage_BT,
        return_BT=advantage_BT + values,
        kl_B=kl_BT.sum(1),
        count=length_B.sum().double(),
        sum=exact.sum(),
        sum_sq=exact.square().sum(),
    )


def filter_logits(logits_BV: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits [B, V] with everything but the candidates set to -inf; same dtype, a new tensor where it changes.

    top_k: the k largest logits stay (and those equal to the k-th); 0: all.
    top_p: of these, the smallest set stays whose probability reaches top_p (Holtzman et al. 2020): a token stays if
        the tokens above it hold less than top_p, equal logits ordered by vocabulary id; 1: all.
    The largest logit always stays. Order and meaning are those of transformers' logits warpers.
    """
    if 0 < top_k < logits_BV.shape[-1]:
        smallest_kept_B1 = logits_BV.topk(top_k, dim=-1).values[..., -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_kept_B1, -torch.inf)
    if top_p < 1.0:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
        probs_BV = sorted_BV.double().softmax(dim=-1)
        above_BV = probs_BV.cumsum(dim=-1) - probs_BV
        dropped_BV = above_BV >= top_p
        dropped_BV[..., 0] = False
        logits_BV = logits_BV.masked_fill(dropped_BV.scatter(-1, order_BV, dropped_BV), -torch.inf)
    return logits_BV


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """int64 [B]: the first token, in vocabulary order, whose cumulative probability exceeds the row's uniform.

    logits_BV: [B, V], -inf for tokens that must not be drawn (at least one per row is finite).
    uniform_B: float64 [B] in [0, 1).
    """
    logits_BV = logits_BV.double()
    weights_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).exp()
    cumulative_BV = weights_BV.cumsum(dim=-1)
    total_B = cumulative_BV[:, -1]
    # u * total may round up to the total, beyond which no token lies.
    target_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    return torch.searchsorted(cumulative_BV, target_B[:, None], right=True).squeeze(1)


def sample(
    logits_BV: Tensor,
    uniform_B: Tensor | None,
    *,
    vocab_size: int,
    known_ids: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `gipo_mc.ops.sample`. Computed in float64, whatever the logits are."""
    logits_BV = logits_BV[:, :vocab_size].double() / temperature
    normaliser_B = logits_BV.logsumexp(dim=-1)
    candidates_BV = logits_BV[:, : known_ids or None]
    if greedy:
        token_B = candidates_BV.argmax(dim=-1)
    else:
        assert uniform_B is not None, "sampling needs a uniform number for each row"
        token_B = draw(filter_logits(candidates_BV, top_k=top_k, top_p=top_p), uniform_B)
    broken_B = ~(normaliser_B.isfinite() & candidates_BV.amax(dim=-1).isfinite())
    token_B = token_B.clamp(max=candidates_BV.shape[-1] - 1)  # a NaN row finds no token
    logp_B = logits_BV.gather(-1, token_B[:, None]).squeeze(1) - normaliser_B
    return token_B.masked_fill(broken_B, -1), logp_B.masked_fill(broken_B, torch.nan)
