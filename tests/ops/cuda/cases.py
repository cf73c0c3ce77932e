"""What the CUDA tests share: the device, options, and the token op with its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gipo_mc.ops import token_statistics

DEVICE = "cuda"
OBJECTIVE = {"clip": 0.2, "kl_estimator": "k3", "signal_form": "ratio"}


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(
        torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(9.0), y.nan_to_num(9.0))
        for x, y in zip(a, b, strict=True)
    )


def tokens(logits: Tensor, targets: Tensor, op: Callable = token_statistics, **options: object) -> list[Tensor]:
    """Outputs, and the gradient under upstream gradients that differ from token to token."""
    leaf = logits.detach().requires_grad_()
    token = op(leaf, targets, **options)
    weights = torch.linspace(-1.5, 2.0, 2 * len(targets), device=logits.device, dtype=token.logp_N.dtype).reshape(2, -1)
    torch.autograd.backward(list(token), list(weights))
    assert leaf.grad is not None
    return [*(x.detach() for x in token), leaf.grad]
