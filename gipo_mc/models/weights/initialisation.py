"""Random weights, the same model in every layout: each tensor comes from a stream of its own name."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import StageModel
from gipo_mc.models.weights.table import HEADS, OUTPUT, load_parameters, trunk_tensors
from gipo_mc.parallel.streams import generator


class RandomWeights:
    """A fresh trunk under Hugging Face names: norms are 1, biases 0, matrices N(0, initializer_range^2), each from the
    stream of its name."""

    def __init__(self, shape: ModelShape, seed: int) -> None:
        self.tensors = trunk_tensors(shape) | {OUTPUT: (shape.vocab_size, shape.hidden_size)}
        self.std, self.seed = shape.initializer_range, seed

    def read(self, name: str, rows: slice, columns: slice = slice(None)) -> Tensor:
        size = self.tensors[name]
        if len(size) == 1:
            return (torch.zeros if name.endswith(".bias") else torch.ones)(size)[rows]
        return normal(self.seed, name, size, self.std)[rows, columns]


def normal(seed: int, name: str, size: tuple[int, ...], std: float) -> Tensor:
    """float32 N(0, std^2) from the stream of (seed, name)."""
    draws = generator(seed, f"weights/{name}").standard_normal(size, dtype=np.float32)
    return torch.from_numpy(draws).mul_(std)


def initialize_trunk(model: StageModel, seed: int) -> None:
    """Random weights for everything but the heads."""
    load_parameters(model, RandomWeights(model.shape, seed), skip=HEADS)


@torch.no_grad()
def initialize_heads(model: StageModel, seed: int) -> None:
    """Fresh heads: values and rewards start at 0, so that a reward model begins at a loss of ln 2 a pair and has no
    random preference to unlearn; the group head small, so that p_phi starts near uniform but not symmetric, which
    would give every group the same gradient for ever."""
    hidden = model.shape.hidden_size
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue  # a dry run's, which has no storage
        if name in HEADS or (name.startswith("group_head.") and name.endswith(".bias")):
            parameter.zero_()
        elif name.startswith("group_head."):
            parameter.copy_(normal(seed, name, tuple(parameter.shape), hidden**-0.5))
