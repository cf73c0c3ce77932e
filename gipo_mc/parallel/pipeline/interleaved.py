"""What Megatron's interleaved schedule asks of micro-batches.

With P ranks and V chunks of layers on each, the schedule runs the micro-batches in groups: all of a group through the
first chunks of all ranks, then through the second ones, and so on. A group has at least P micro-batches, so that a rank
has work until the first of them comes round; the larger the groups, the more activations wait for their backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gipo_mc.parallel.layout import Layout


@dataclass(frozen=True)
class Filler:
    """A micro-batch of one row that nothing is made of: no output, and a gradient of exactly 0."""

    tokens_BL: Tensor


def filled_up(micro_batches: Sequence[Any], layout: Layout) -> list[Any]:
    """As many micro-batches as an interleaved pipeline has ranks, or more; fillers come first. Gradients that are
    reduced while others are still computed wait for the last micro-batch, which must therefore reach all parameters."""
    missing = layout.pipeline - len(micro_batches) if layout.virtual > 1 else 0
    tokens_BL = torch.zeros(1, layout.length_multiple, dtype=torch.int64, device=layout.device)
    return [*[Filler(tokens_BL)] * max(missing, 0), *micro_batches]


def group_size(count: int, pipeline: int) -> int:
    """The smallest size of the groups that `count` >= `pipeline` micro-batches can be run in: the last group may be a
    smaller one, but of no less than `pipeline` either. At most 2 pipeline - 1."""
    return next(size for size in range(pipeline, count + 1) if not 0 < count % size < pipeline)
