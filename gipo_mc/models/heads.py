"""Scalar and group heads on the last stage's hidden states, replicated over the tensor-parallel ranks.

Every rank of a tensor group sees the same full hidden state and computes the same output, so a head's gradient is
complete on each of them and needs no reduction. Weights have the model's dtype, arithmetic is float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """w . h, the value of a state or the reward of a response at its last token. No bias, as in HF's `score`."""

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=dtype, device=device))

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """[N, H] -> float32 [N]."""
        return F.linear(_single(hidden_NH), _single(self.weight)).squeeze(-1)


class GroupHead(nn.Module):
    """Logits of the group classifier p_phi(g | x, y): Linear(H, H) - GELU - Linear(H, M), or Linear(H, M) alone."""

    def __init__(self, hidden_size: int, groups: int, kind: str, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size, dtype=dtype, device=device) if kind == "mlp" else None
        self.output = nn.Linear(hidden_size, groups, dtype=dtype, device=device)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """[N, H] -> float32 [N, M]."""
        x_NH = _single(hidden_NH)
        if self.hidden is not None:
            x_NH = F.gelu(F.linear(x_NH, _single(self.hidden.weight), _single(self.hidden.bias)))
        return F.linear(x_NH, _single(self.output.weight), _single(self.output.bias))


def _single(x: Tensor) -> Tensor:
    """At least float32: float64 models (used to check gradients) keep their precision."""
    return x if x.dtype is torch.float64 else x.float()
