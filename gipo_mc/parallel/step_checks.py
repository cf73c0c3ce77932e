"""What an optimizer step did to the weights, from a few of them, and the learning rates that no training survives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from gipo_mc.errors import NumericsError
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.optimizer import parts_of

#: Weights of each tensor that are looked at, evenly spread over it.
PROBED = 64
#: A step whose change, as a root mean square, is larger than the weights themselves leaves nothing of the model. Adam's
#: steps are as large as the learning rate, so a healthy one is a thousandth of the weights.
LARGEST_CHANGE = 1.0


@dataclass(frozen=True)
class StepChange:
    """size: root mean square of the change over that of the weights; 0 where all probed weights are 0.
    moved: share of the probed weights with a gradient, and not 0 themselves, that changed; None: there are none."""

    size: float
    moved: float | None


@dataclass(frozen=True)
class StepResult:
    """grad_norm: global L2 norm before clipping. updated: False where a non-finite norm left everything unchanged.
    change: of the weights, the same on every rank; None where nothing was updated."""

    grad_norm: float
    updated: bool
    lr: float
    change: StepChange | None = None


class StepProbe:
    """The probed weights before a step; float32 also where the model is bfloat16, as the optimizer holds them."""

    def __init__(self, optimizer: MegatronOptimizer) -> None:
        self._weights = [
            weight
            for part in parts_of(optimizer)
            for group in part.optimizer.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        self._before = self._probe(self._weights)
        self._gradient = self._probe([weight.grad for weight in self._weights])

    def change(self, device: torch.device) -> StepChange:
        """Since the probe was made, over all ranks. A collective."""
        after, before = self._probe(self._weights), self._before
        told = (self._gradient != 0) & (before != 0)
        own_4 = torch.stack(
            [(after - before).square().sum(), before.square().sum(), told.sum(), (told & (after != before)).sum()]
        )
        update, weight, told_count, moved = gather_in_rank_order(own_4.double().to(device)).sum(0).tolist()
        return StepChange(
            size=math.sqrt(update / weight) if weight else 0.0, moved=moved / told_count if told_count else None
        )

    def _probe(self, tensors: list[Tensor]) -> Tensor:
        flat = [tensor.detach().reshape(-1) for tensor in tensors]
        few = [values[:: max(1, len(values) // PROBED)][:PROBED] for values in flat]
        return torch.cat(few).double() if few else torch.zeros(0, dtype=torch.float64)


def check_step(result: StepResult, key: str) -> None:
    """Raise NumericsError where one step overwrote the model. key: of the optimizer's section, "policy" or "critic"."""
    if result.change is not None and not result.change.size <= LARGEST_CHANGE:
        raise NumericsError(
            f"One optimizer step at {key}.lr={result.lr:g} changed the weights by {result.change.size:.3g} times their "
            f"own size: nothing of the model is left. Lower {key}.lr (1e-6 to 1e-3 is usual) and continue from the "
            "last checkpoint, or begin again."
        )


def still_sentence(result: StepResult | None, key: str) -> str:
    """A sentence where a step had gradients and changed nothing, or had none; else "", and where there was none."""
    if result is None or not result.updated or not result.lr:
        return ""
    if result.grad_norm == 0.0:
        return (
            f"The gradient of the first {key} step is exactly 0, so it learns nothing: all rewards or losses of the "
            "batch may be equal, or saturated."
        )
    if result.change is not None and result.change.moved == 0.0:
        return (
            f"The first step at {key}.lr={result.lr:g} changed none of the weights: it is less than half of their last "
            f"digit. Raise {key}.lr, or {key}.clip_grad if that is tiny, or training does nothing."
        )
    return ""
