"""The mini-batches of an update: which rows of the rollout batch make each optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gipo_mc.config import Config
from gipo_mc.parallel.layout import split_rows
from gipo_mc.parallel.streams import permutation
from gipo_mc.types import Experience, Sequences


@dataclass(frozen=True)
class MiniBatch:
    """One optimizer step.

    rows_B: int64 [b], its rows of the rollout batch. sequences: their tokens. tokens: response tokens, over all ranks.
    first: nothing was updated yet in this iteration, so the scores of the rollout still hold exactly.
    """

    rows_B: Tensor
    sequences: Sequences
    tokens: int
    first: bool

    def __len__(self) -> int:
        return len(self.rows_B)


def mini_batches(experience: Experience, config: Config, step: int, purpose: str, epochs: int) -> Iterator[MiniBatch]:
    """`epochs` passes over the rollout batch, each in its own random order (a function of seed, step and
    epoch), in mini-batches of `algorithm.mini_batch_size` rows, or evenly fewer where that does not divide them."""
    sequences, settings = experience.rollout.sequences, config.algorithm
    count = len(sequences)
    blocks = split_rows(count, -(-count // settings.mini_batch_size))
    first = True
    for epoch in range(epochs):
        order = permutation(config.run.seed, f"{purpose}/epoch{epoch}", step, count)
        for block in blocks:
            rows_B = torch.from_numpy(order[block.start : block.stop].copy()).to(sequences.tokens_BL.device)
            part = sequences.rows(rows_B)
            yield MiniBatch(rows_B, part, int(part.response_length_B.sum()), first)
            first = False
