"""Random and hand-made groups, and both kinds of group weights."""

import pytest
import torch

from gipo_mc.algorithms.group_invariance import group_statistics, moments

MODES = ("size", "population")
modes = pytest.mark.parametrize("weights", MODES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

# One sequence of group 1, three of group 0: R = (2, 6).
HARD = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
SIGNAL = torch.tensor([0.0, 3.0, 3.0, 6.0])


def draw(rows, groups, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, groups, generator=generator, dtype=torch.float64)
    signal = torch.randn(rows, generator=generator, dtype=torch.float64)
    return logits.softmax(1).to(dtype), signal.to(dtype)


def whole(probs, signal, weights):
    return moments(*group_statistics(probs, signal), len(signal), weights)
