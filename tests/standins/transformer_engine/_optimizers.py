"""`FusedAdam`, whose steps are counted by group and whose state has three names at most, and Megatron's three
functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FusedAdam(torch.optim.Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        assert adam_w_mode and bias_correction and not amsgrad and not capturable
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.name_to_dtype_map = dict.fromkeys(("exp_avg", "exp_avg_sq", "master_param"), torch.float32)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            given = state_dict["state"].get(number, {})
            self.state[parameter] = {
                name: value.to(self.name_to_dtype_map[name]).clone() for name, value in given.items()
            }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (one, two), count = group["betas"], group["step"]
            for weight in group["params"]:
                state = self.state[weight]
                for name in ("exp_avg", "exp_avg_sq"):
                    state.setdefault(name, torch.zeros_like(weight))
                state["exp_avg"].lerp_(weight.grad, 1 - one)
                state["exp_avg_sq"].lerp_(weight.grad.square(), 1 - two)
                scale = (state["exp_avg_sq"] / (1 - two**count)).sqrt_().add_(group["eps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - one**count))


def multi_tensor_applier(op: Any, flag: Tensor, lists: Any, *rest: Any) -> Any:
    return op(2048 * 32, flag, lists, *rest)


def multi_tensor_l2norm(chunk: int, flag: Tensor, lists: list[list[Tensor]], per_tensor: bool) -> Any:
    return torch.stack([tensor.norm() for tensor in lists[0]]).norm()[None], None


def multi_tensor_scale(chunk: int, flag: Tensor, lists: list[list[Tensor]], scale: float) -> None:
    for source, target in zip(*lists, strict=True):
        target.copy_(source * scale)
