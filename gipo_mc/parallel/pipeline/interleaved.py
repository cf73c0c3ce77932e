"""What Megatron's interleaved schedule asks of micro-batches.

With P ranks and V chunks of layers on each, the schedule runs the micro-batches in groups of P: a group through the
first chunks of all ranks, then through the second ones, and so on, so that a rank has work until the first micro-batch
of the group comes round. Their number must be a multiple of P.
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

    def loss(self, hidden_LBH: Tensor) -> Tensor:
        """0, whose gradient is 0, too."""
        return hidden_LBH[0, 0, 0] * 0


def filled_up(micro_batches: Sequence[Any], layout: Layout) -> list[Any]:
    """The micro-batches, as the schedule of this layout takes them. Fillers come first: gradients that are reduced
    while others are still computed wait for the last micro-batch, which must therefore reach all parameters."""
    if layout.virtual == 1:
        return list(micro_batches)
    tokens_BL = torch.zeros(1, layout.length_multiple, dtype=torch.int64, device=layout.device)
    return [*[Filler(tokens_BL)] * (-len(micro_batches) % layout.pipeline), *micro_batches]
