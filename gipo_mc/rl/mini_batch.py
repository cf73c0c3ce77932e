"""The mini-batches of an update: which rows of the rollout batch make each optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gipo_mc.config import Config, ParallelConfig
from gipo_mc.models.micro_batch import PackedBatch, micro_batches
from gipo_mc.parallel.layout import Layout, split_rows
from gipo_mc.parallel.streams import permutation
from gipo_mc.rl.experience import Experience


@dataclass(frozen=True)
class MiniBatch:
    """One optimizer step.

    experience: its rows of the rollout batch. tokens: response tokens, over all ranks.
    first: nothing was updated yet in this iteration, so the outputs of the scoring stage still hold exactly.
    """

    experience: Experience
    tokens: int
    first: bool

    def __len__(self) -> int:
        return len(self.experience)

    def micro_batches(self, parallel: ParallelConfig, layout: Layout) -> PackedBatch:
        """Its rows in micro-batches, whose `rows_B` are of this mini-batch."""
        rollout = self.experience.rollout
        return micro_batches(rollout.sequences, parallel, layout, width=rollout.width)


def mini_batches(
    experience: Experience, config: Config, step: int, purpose: str, epochs: int, ranks: int = 1
) -> Iterator[MiniBatch]:
    """`epochs` passes over the rollout batch, each in its own random order (a function of seed, step and
    epoch), in mini-batches of `algorithm.mini_batch_size` rows, or evenly fewer where that does not divide them.

    ranks: data-parallel size. Where responses were left out, a mini-batch of fewer rows is joined to the others.
    """
    count, device = len(experience), experience.kl_B.device
    blocks = split_rows(count, min(-(-count // config.algorithm.mini_batch_size), count // ranks))
    first = True
    for epoch in range(epochs):
        order = permutation(config.run.seed, f"{purpose}/epoch{epoch}", step, count)
        for block in blocks:
            part = experience.rows(torch.from_numpy(order[block.start : block.stop].copy()).to(device))
            yield MiniBatch(part, int(part.inputs.length_B.sum()), first)
            first = False
