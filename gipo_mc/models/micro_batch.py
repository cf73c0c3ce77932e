"""From sequences to micro-batches: which rows this rank runs, and where the hidden states it needs are.

The last stage turns only the states that predict a response token into logits, so prompts cost no vocabulary
projection and padding costs no kernel time: `MicroBatch.state_N` indexes the packed rows of hidden_LBH.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from gipo_mc.config import ParallelConfig
from gipo_mc.models.packing import Packer
from gipo_mc.parallel.collectives import replicate_rows
from gipo_mc.parallel.engine import Engine, LastStage
from gipo_mc.parallel.layout import Layout
from gipo_mc.types import Sequences


@dataclass(frozen=True)
class MicroBatch:
    """One pass through the pipeline.

    sequences: the rows, padded to the longest of them and to the layout's length multiple, on the device.
    rows_B: int64 [b], where its rows stand in the batch that it was cut from, on the device.
    width: T of that batch, the width of every response-aligned tensor.
    unit: rows that belong together (2 for a pair).
    """

    sequences: Sequences
    rows_B: Tensor
    width: int
    unit: int = 1

    def __len__(self) -> int:
        """Units of rows."""
        return len(self.sequences) // self.unit

    @property
    def units_U(self) -> Tensor:
        """int64 [units]: the same counted in units, its pairs among the pairs of the batch."""
        return self.rows_B[:: self.unit] // self.unit

    @property
    def tokens_BL(self) -> Tensor:
        return self.sequences.tokens_BL

    @cached_property
    def response_NN(self) -> tuple[Tensor, Tensor]:
        """(row, time), int64 [N] each: the response tokens of this micro-batch in row order."""
        length_B = self.sequences.response_length_B
        time_T = torch.arange(self.width, device=length_B.device)
        row_N, time_N = torch.nonzero(time_T < length_B[:, None], as_tuple=True)
        return row_N, time_N

    @cached_property
    def state_N(self) -> Tensor:
        """int64 [N]: rows of hidden_LBH.flatten(0, 1) whose state predicts each response token."""
        row_N, time_N = self.response_NN
        return (self.sequences.prompt_length_B[row_N] - 1 + time_N) * len(self.sequences) + row_N

    @cached_property
    def target_N(self) -> Tensor:
        """int64 [N]: the response tokens."""
        row_N, time_N = self.response_NN
        return self.tokens_BL[row_N, self.sequences.prompt_length_B[row_N] + time_N]

    @cached_property
    def last_B(self) -> Tensor:
        """int64 [b]: rows of hidden_LBH.flatten(0, 1) at the last token of prompt + response."""
        position_B = self.sequences.prompt_length_B + self.sequences.response_length_B - 1
        return position_B * len(self.sequences) + torch.arange(len(self.sequences), device=position_B.device)

    def reward_B(self, pad_id: int | None) -> Tensor:
        """int64 [b]: rows of hidden_LBH.flatten(0, 1) at which a reward model with this pad id is read.

        That is the last token of prompt + response whose id is not `pad_id` (the first, where all are), the rule of
        transformers' ...ForSequenceClassification; None: the last token.
        """
        if pad_id is None:
            return self.last_B
        place_L = torch.arange(self.tokens_BL.shape[1], device=self.tokens_BL.device)
        length_B = self.sequences.prompt_length_B + self.sequences.response_length_B
        read_BL = (place_L < length_B[:, None]) & (self.tokens_BL != pad_id)
        position_B = torch.where(read_BL, place_L, 0).amax(dim=1)
        return position_B * len(self.sequences) + torch.arange(len(self.sequences), device=position_B.device)

    @cached_property
    def prompt_end_B(self) -> Tensor:
        """int64 [b]: rows of hidden_LBH.flatten(0, 1) at the last token of the prompt."""
        position_B = self.sequences.prompt_length_B - 1
        return position_B * len(self.sequences) + torch.arange(len(self.sequences), device=position_B.device)

    def to_response_BT(self, value_N: Tensor) -> Tensor:
        """Packed response tokens [N] -> [b, T], zeros in the padding; differentiable."""
        row_N, time_N = self.response_NN
        return value_N.new_zeros(len(self.sequences), self.width).index_put((row_N, time_N), value_N)


@dataclass(frozen=True)
class PackedBatch:
    """A batch, cut into micro-batches for all data-parallel replicas.

    parts: those of this rank's replica.
    units: the units that each replica runs, in its order. Together they are all units of the batch, once each.
    padding: share of padding among the tokens of all replicas.
    """

    parts: list[MicroBatch]
    units: list[list[int]]
    padding: float

    @property
    def is_one_pass(self) -> bool:
        """Is it one micro-batch, of one replica? Then a single pass sees all of its rows."""
        return len(self.units) == len(self.parts) == 1


def micro_batches(
    sequences: Sequences, parallel: ParallelConfig, layout: Layout, *, unit: int = 1, width: int = 0
) -> PackedBatch:
    """`sequences` in micro-batches of at most `parallel.micro_batch_size` rows and, where it is set,
    `parallel.tokens_per_micro_batch` tokens, rows of like length together.

    unit: rows that belong together and are never split (2 for the pairs of a reward model).
    width: T of the tensors that go with them; 0: the longest response.
    Any replica may run any rows, and the numbers of micro-batches may differ. A replica without rows (an evaluation of
    fewer rows than replicas) runs the shortest unit, for the collectives; `run_forward` drops it.
    """
    width = width or int(sequences.response_length_B.max())
    tokens_U = (sequences.prompt_length_B + sequences.response_length_B).reshape(-1, unit)
    multiple = layout.length_multiple
    padded = [-(-longest // multiple) * multiple for longest in tokens_U.amax(dim=1).tolist()]
    packer = Packer(padded, max(parallel.micro_batch_size // unit, 1), parallel.tokens_per_micro_batch, unit)
    plan = packer.plan(layout.data)
    own = plan[layout.data_rank] or [[min(range(len(padded)), key=padded.__getitem__)]]
    parts = []
    for units in own:
        rows = [unit * number + row for number in units for row in range(unit)]
        rows_B = torch.tensor(rows, device=sequences.tokens_BL.device)
        padding = padded[units[0]] - sequences.tokens_BL.shape[1]  # usually negative: what all of them share goes
        part = Sequences(
            F.pad(sequences.tokens_BL[rows_B], (0, padding)).to(layout.device),
            sequences.prompt_length_B[rows_B].to(layout.device),
            sequences.response_length_B[rows_B].to(layout.device),
        )
        parts.append(MicroBatch(part, rows_B.to(layout.device), width, unit))
    order = [[number for units in replica for number in units] for replica in plan]
    return PackedBatch(parts, order, packer.padding(plan, int(tokens_U.sum())))


def run_forward(engine: Engine, batch: PackedBatch, last_stage: LastStage, widths: dict[str, int]) -> dict[str, Tensor]:
    """Forward pass over the micro-batches of all ranks; the last stage's outputs for all units of rows, in the order
    of the batch, on every rank.

    widths: name -> trailing width of each output, 0 for one number a unit (see `replicate_rows`).
    """
    return _everywhere(engine.forward(batch.parts, last_stage), widths, batch, engine.layout)


def run_backward(
    engine: Engine,
    batch: PackedBatch,
    last_stage: LastStage,
    widths: dict[str, int],
    sums: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Like `run_forward`, accumulating the gradients of each micro-batch's "loss".

    sums: outputs that are one number a micro-batch (a scalar); they come back added up over all of them.
    """
    assert all(batch.units), "check_layout keeps batches at least as large as the data-parallel size"
    outputs = engine.forward_backward(batch.parts, last_stage)
    # Ranks hold different numbers of micro-batches, so a sum travels with the rows, in the first of its micro-batch.
    columns = [
        output | {name: F.pad(output[name].detach()[None], (0, len(part) - 1)) for name in sums}
        for output, part in zip(outputs, batch.parts)
    ]
    found = _everywhere(columns, widths | dict.fromkeys(sums, 0), batch, engine.layout)
    return found | {name: found[name].sum() for name in sums}


def _everywhere(
    outputs: list[dict[str, Tensor]], widths: dict[str, int], batch: PackedBatch, layout: Layout
) -> dict[str, Tensor]:
    own = len(batch.units[layout.data_rank])
    columns = {name: torch.cat([output[name] for output in outputs])[:own] for name in widths} if outputs else None
    return replicate_rows(columns, widths, batch.units, layout)
