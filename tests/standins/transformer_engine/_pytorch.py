"""`Linear` and `LayerNormLinear`, for one rank: what Megatron passes, and how a weight's gradient is accumulated."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """x w^T. fuse: the weight's gradient goes into `main_grad` here, over what is there in the first micro-batch, and
    autograd is given a tensor of rubbish."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, fuse: bool, first: bool | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.fuse, ctx.first = fuse, first
        return x.matmul(weight.t())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_weight = gradient.flatten(0, -2).t().matmul(x.flatten(0, -2))
        if ctx.fuse:
            weight.main_grad.copy_(of_weight) if ctx.first else weight.main_grad.add_(of_weight)
            weight.grad_added_to_main_grad = True
            of_weight = torch.full_like(weight, torch.nan)
        return gradient.matmul(weight), of_weight, None, None


class Linear(nn.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        rng_tracker_name: str | None = None,
        init_method: Any = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: Any = "cuda",
    ) -> None:
        super().__init__()
        assert tp_size == 1 and not bias and not return_bias and parallel_mode in ("row", "column")
        self.in_features, self.out_features, self.use_bias, self.tp_size = in_features, out_features, bias, tp_size
        self.fuse_wgrad_accumulation, self.parallel_mode = fuse_wgrad_accumulation, parallel_mode
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))

    def forward(self, inp: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        return _Product.apply(inp, self.weight, self.fuse_wgrad_accumulation, is_first_microbatch)  # type: ignore[no-any-return,no-untyped-call]


class LayerNormLinear(Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        *,
        normalization: str = "LayerNorm",
        return_layernorm_output: bool = False,
        zero_centered_gamma: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        assert normalization == "RMSNorm" and not return_layernorm_output and not zero_centered_gamma
        self.eps = eps
        self.layer_norm_weight = nn.Parameter(torch.ones_like(self.weight[0]))

    def forward(self, inp: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        normal = F.rms_norm(inp, self.layer_norm_weight.shape, self.layer_norm_weight, self.eps)
        return super().forward(normal, is_first_microbatch)


def get_cpu_offload_context(enabled: bool = False, *sizes: Any, **options: Any) -> tuple[Any, Any]:
    """Nothing is offloaded: a context, and what goes between two layers."""
    assert not enabled
    return nullcontext(), lambda hidden: hidden


class SplitAlongDim:
    """TransformerEngine's has an underscore before its name."""

    @staticmethod
    def apply(mixed: Tensor, dim: int, sizes: list[int]) -> tuple[Tensor, ...]:
        return mixed.split(sizes, dim)
