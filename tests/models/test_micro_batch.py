"""Micro-batches by hand: which hidden states predict which tokens, and which rows a rank runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gipo_mc.config import ParallelConfig
from gipo_mc.data.collate import to_sequences
from gipo_mc.models.micro_batch import MicroBatch, micro_batches, run_forward
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.types import Sequences
from tests.ranks import run_ranks

ALONE = Layout(1, 0, 1, 1, 1, 0, 0, 0, False, torch.device("cpu"))
PAD = 99


def _rows(part: MicroBatch) -> list[int]:
    return list(range(part.span.start, part.span.stop))


def by_hand() -> Sequences:
    """Prompts of 2, 1 and 3 tokens with responses of 3, 0 and 1: [3, 5]."""
    return to_sequences([[10, 11], [20], [30, 31, 32]], [[12, 13, 14], [], [33]], PAD)


def test_positions_and_targets_by_hand() -> None:
    batch = MicroBatch(by_hand(), 0, width=4)
    row_N, time_N = batch.response_NN
    assert row_N.tolist() == [0, 0, 0, 2] and time_N.tolist() == [0, 1, 2, 0]
    # hidden_LBH.flatten(0, 1): row position * 3 + sequence. Token 12 at position 2 is predicted at position 1.
    assert batch.state_N.tolist() == [1 * 3, 2 * 3, 3 * 3, 2 * 3 + 2]
    assert batch.target_N.tolist() == [12, 13, 14, 33]
    assert batch.last_B.tolist() == [4 * 3, 0 * 3 + 1, 3 * 3 + 2]
    assert batch.prompt_end_B.tolist() == [1 * 3, 0 * 3 + 1, 2 * 3 + 2]


def test_a_reward_is_read_at_the_last_token_that_is_not_the_pad_id() -> None:
    end = 14  # of a reward model whose pad id is its EOS, too
    rows = to_sequences([[10, 11], [20], [30, end, 32], [end, end]], [[12, 13, end], [], [end, end], [end]], PAD)
    batch = MicroBatch(rows, 0, width=3)
    position = {None: [4, 0, 4, 2], end: [3, 0, 2, 0], PAD: [4, 0, 4, 2], 12: [4, 0, 4, 2]}
    for pad_id, expected in position.items():
        assert batch.reward_B(pad_id).tolist() == [4 * place + row for row, place in enumerate(expected)], pad_id
    assert MicroBatch(rows.rows(slice(2, 4)), 2, width=3).reward_B(end).tolist() == [2 * 2, 1], "as a micro-batch"


def test_the_positions_are_those_of_the_flattened_hidden_states() -> None:
    """A "model" whose hidden state is (position, token itself) shows what is really picked."""
    batch = MicroBatch(by_hand(), 0, width=3)
    tokens_LB = batch.tokens_BL.t()
    hidden_LBH = torch.stack([torch.arange(5)[:, None].expand(5, 3), tokens_LB], dim=-1)
    states_NH = hidden_LBH.flatten(0, 1)
    assert states_NH[batch.state_N][:, 1].tolist() == [11, 12, 13, 32], "the token before each response token"
    assert states_NH[batch.last_B][:, 1].tolist() == [14, 20, 33]
    assert states_NH[batch.prompt_end_B][:, 1].tolist() == [11, 20, 32]


def test_packed_values_go_back_to_their_places_with_their_gradient() -> None:
    batch = MicroBatch(by_hand(), 0, width=4)
    value_N = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    value_BT = batch.to_response_BT(value_N)
    assert value_BT.tolist() == [[1, 2, 3, 0], [0, 0, 0, 0], [4, 0, 0, 0]]
    (value_BT * torch.arange(12.0).reshape(3, 4)).sum().backward()
    assert value_N.grad is not None and value_N.grad.tolist() == [0, 1, 2, 8]


def test_rows_are_cut_in_order_and_padded_no_further_than_their_own_longest() -> None:
    parts = micro_batches(by_hand(), 2, ALONE)
    assert [_rows(part) for part in parts] == [[0, 1], [2]]
    assert [tuple(part.tokens_BL.shape) for part in parts] == [(2, 5), (1, 4)]
    assert [part.width for part in parts] == [3, 3], "the time of the whole batch, so that tensors line up"
    assert parts[1].tokens_BL.tolist() == [[30, 31, 32, 33]]
    assert [part.width for part in micro_batches(by_hand(), 2, ALONE, width=7)] == [7, 7]


def test_lengths_are_padded_to_the_layouts_multiple() -> None:
    layout = replace(ALONE, tensor=4, sequence=True)
    parts = micro_batches(by_hand(), 2, layout)
    assert [tuple(part.tokens_BL.shape) for part in parts] == [(2, 8), (1, 4)]
    assert parts[0].tokens_BL[0, :5].tolist() == [10, 11, 12, 13, 14]
    assert parts[0].state_N.tolist() == [1 * 2, 2 * 2, 3 * 2], "padding moves no position"


def pairs(count: int) -> Sequences:
    return to_sequences([[row] for row in range(2 * count)], [[50 + row] for row in range(2 * count)], PAD)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (4, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (3, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]),
        (1, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]),
    ],
)
def test_pairs_stay_together(size: int, expected: list[list[int]]) -> None:
    parts = micro_batches(pairs(5), size, ALONE, unit=2)
    assert [_rows(part) for part in parts] == expected


def test_pairs_are_divided_among_data_parallel_ranks_whole() -> None:
    rows = []
    for rank in (0, 1):
        parts = micro_batches(pairs(5), 4, replace(ALONE, data=2, data_rank=rank), unit=2)
        rows.append([row for part in parts for row in _rows(part)])
    assert rows == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


def _everywhere(rank: int, sizes: dict[str, int]) -> Any:
    layout = runtime.initialize(ParallelConfig(timeout_minutes=1, **sizes), "cpu")

    class FakeEngine:
        def __init__(self) -> None:
            self.layout = layout

        def forward(self, batches: Any, last_stage: Any) -> Any:
            return [last_stage(None, None, part) for part in batches] if layout.is_last_stage else []

    def last_stage(model: Any, hidden: Any, part: MicroBatch) -> dict[str, torch.Tensor]:
        return {"first": part.tokens_BL[:, 0].float(), "logp": part.to_response_BT(part.target_N.float())}

    engine: Engine = FakeEngine()  # type: ignore[assignment]
    parts = micro_batches(by_hand(), 1, layout)
    return run_forward(engine, parts, 3, last_stage, {"logp": 3, "first": 0})


@pytest.mark.parametrize("sizes", [{}, {"pipeline": 2}])
def test_results_of_all_rows_are_on_every_rank_in_order(sizes: dict[str, int]) -> None:
    for found in run_ranks(_everywhere, 2, sizes):
        assert found["first"].tolist() == [10, 20, 30]
        assert found["logp"].tolist() == [[12, 13, 14], [0, 0, 0], [33, 0, 0]]


def test_a_replica_without_rows_of_its_own_changes_no_result() -> None:
    """Four replicas and three rows, as in a small evaluation."""
    for found in run_ranks(_everywhere, 4, {}):
        assert found["first"].tolist() == [10, 20, 30]
        assert found["logp"].tolist() == [[12, 13, 14], [0, 0, 0], [33, 0, 0]]
