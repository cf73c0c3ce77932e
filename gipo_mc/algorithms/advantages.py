"""Around generalised advantage estimation (which is `gipo_mc.ops`): masks, whitening, reward normalisation, and the
advantages that need no critic because they compare a response with the other samples of its prompt."""

from __future__ import annotations

import torch
from torch import Tensor

_VARIANCE_FLOOR = 1e-8  # of the whitening: rounding noise around a constant is not blown up to std 1
_STD_FLOOR = 1e-8
_SAME_REWARD = 1e-6  # relative: a reward model's rounding between two batches is no difference of what they earn


def response_mask(length_B: Tensor, time: int) -> Tensor:
    """bool [B, time], True where t < length_B[i] (int64 [B], tokens)."""
    return torch.arange(time, device=length_B.device) < length_B.unsqueeze(1)


def whiten(
    advantage_BT: Tensor, length_B: Tensor, count: Tensor | float, sum: Tensor | float, sum_sq: Tensor | float
) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over all response tokens: (A - mean) / sqrt(var + 1e-8).

    advantage_BT: floating [B, T]; length_B: int64 [B], tokens.
    count, sum, sum_sq: number, sum and sum of squares of the advantages of *all* response tokens of the rollout
        batch (fp64 scalars, not only of these rows), so that rows may be whitened piece by piece.
    Returns [B, T] of the same dtype, padding 0. A constant input gives 0, no tokens at all give 0.
    """
    device = advantage_BT.device
    n, s, q = (torch.as_tensor(x, dtype=torch.float64, device=device) for x in (count, sum, sum_sq))
    n = n.clamp(min=1.0)
    mean = s / n
    variance = (q / n - mean * mean).clamp(min=0.0)
    mask = response_mask(length_B, advantage_BT.shape[1])
    white_BT = (advantage_BT.double() - mean) * torch.rsqrt(variance + _VARIANCE_FLOOR)
    return torch.where(mask, white_BT, 0.0).to(advantage_BT.dtype)


def normalise_reward(reward_B: Tensor, mean: float, std: float, clip: float = 0.0) -> Tensor:
    """What a response is paid: (reward - running mean) / running std, bounded to [-clip, clip] when clip > 0.

    reward_B: [B] in reward-model units; mean and std in the same units (`state.RLState.reward_mean` and
    `.reward_std`). A std of 0 (all rewards equal so far) is held at 1e-8 and gives 0 for those rewards.
    """
    normalized_B = ((reward_B.double() - mean) / max(std, _STD_FLOOR)).to(reward_B.dtype)
    return normalized_B.clamp(-clip, clip) if clip > 0 else normalized_B


def saturated(gain_B: Tensor, scale: float) -> Tensor:
    """What a response is paid for its gain over the reference d_i: log sigmoid(d_i / scale), [B], below 0 (Wang et al.,
    arXiv 2402.00742). It grows like d where d is below 0 and hardly where it is above: a prompt that has gained its
    share is worth less to go on with, and so is a reward that the reward model exaggerates.
    """
    return torch.nn.functional.logsigmoid(gain_B / scale)


def leave_one_out(reward_B: Tensor, samples: int) -> Tensor:
    """RLOO: A_i = r_i - mean of the rewards of the prompt's other samples, [B] (Ahmadian et al., arXiv 2402.14740).

    reward_B: [B], rewards of whole responses (KL penalty included), the `samples` of a prompt side by side.
    """
    reward_PK = _by_prompt(reward_B, samples)
    return ((reward_PK - reward_PK.mean(dim=1, keepdim=True)) * samples / (samples - 1)).flatten().to(reward_B.dtype)


def prompt_normalised(reward_B: Tensor, samples: int, penalty_B: Tensor | None = None) -> Tensor:
    """GRPO: A_i = (r_i - mean) / (std + 1e-6) over the prompt's samples, [B] (Shao et al., arXiv 2402.03300).

    reward_B: [B], what each response earns, the `samples` of a prompt side by side. penalty_B: [B], the KL penalty that
    r_i has beside it. Samples of a prompt that earn the same differ by the penalty alone, which is not blown up to a
    standard deviation of 1: their A_i is r_i - mean, 0 without a penalty.
    """
    earned_PK = _by_prompt(reward_B, samples)
    paid_PK = earned_PK if penalty_B is None else _by_prompt(reward_B - penalty_B, samples)
    spread_P1 = earned_PK.amax(dim=1, keepdim=True) - earned_PK.amin(dim=1, keepdim=True)
    alike_P1 = spread_P1 <= _SAME_REWARD * earned_PK.abs().amax(dim=1, keepdim=True)
    scale_P1 = torch.where(alike_P1, 1.0, paid_PK.std(dim=1, keepdim=True) + 1e-6)
    return ((paid_PK - paid_PK.mean(dim=1, keepdim=True)) / scale_P1).flatten().to(reward_B.dtype)


def _by_prompt(reward_B: Tensor, samples: int) -> Tensor:
    if samples < 2 or len(reward_B) % samples:
        raise ValueError(f"{len(reward_B)} rewards are not {samples} (at least 2) samples of every prompt.")
    return reward_B.detach().double().reshape(-1, samples)


def per_token(advantage_B: Tensor, length_B: Tensor, time: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """(A_it = A_i [B, time], the number, sum and sum of squares over response tokens that `whiten` takes)."""
    advantage_BT = torch.where(response_mask(length_B, time), advantage_B[:, None], 0.0)
    exact = advantage_BT.double()
    return advantage_BT, (length_B.sum().double(), exact.sum(), exact.square().sum())
