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
    return part.rows_B.tolist()


def by_hand() -> Sequences:
    """Prompts of 2, 1 and 3 tokens with responses of 3, 0 and 1: [3, 5]."""
    return to_sequences([[10, 11], [20], [30, 31, 32]], [[12, 13, 14], [], [33]], PAD)


def test_positions_and_targets_by_hand() -> None:
    batch = MicroBatch(by_hand(), torch.arange(3), width=4)
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
    batch = MicroBatch(rows, torch.arange(4), width=3)
    position = {None: [4, 0, 4, 2], end: [3, 0, 2, 0], PAD: [4, 0, 4, 2], 12: [4, 0, 4, 2]}
    for pad_id, expected in position.items():
        assert batch.reward_B(pad_id).tolist() == [4 * place + row for row, place in enumerate(expected)], pad_id
    two = torch.arange(2, 4)
    assert MicroBatch(rows.rows(two), two, width=3).reward_B(end).tolist() == [2 * 2, 1], "as a micro-batch"


def test_the_positions_are_those_of_the_flattened_hidden_states() -> None:
    """A "model" whose hidden state is (position, token itself) shows what is really picked."""
    batch = MicroBatch(by_hand(), torch.arange(3), width=3)
    tokens_LB = batch.tokens_BL.t()
    hidden_LBH = torch.stack([torch.arange(5)[:, None].expand(5, 3), tokens_LB], dim=-1)
    states_NH = hidden_LBH.flatten(0, 1)
    assert states_NH[batch.state_N][:, 1].tolist() == [11, 12, 13, 32], "the token before each response token"
    assert states_NH[batch.last_B][:, 1].tolist() == [14, 20, 33]
    assert states_NH[batch.prompt_end_B][:, 1].tolist() == [11, 20, 32]


def test_packed_values_go_back_to_their_places_with_their_gradient() -> None:
    batch = MicroBatch(by_hand(), torch.arange(3), width=4)
    value_N = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    value_BT = batch.to_response_BT(value_N)
    assert value_BT.tolist() == [[1, 2, 3, 0], [0, 0, 0, 0], [4, 0, 0, 0]]
    (value_BT * torch.arange(12.0).reshape(3, 4)).sum().backward()
    assert value_N.grad is not None and value_N.grad.tolist() == [0, 1, 2, 8]


def _parts(
    sequences: Sequences, size: int, layout: Layout = ALONE, tokens: int = 0, **options: int
) -> list[MicroBatch]:
    parallel = ParallelConfig(micro_batch_size=size, tokens_per_micro_batch=tokens)
    return micro_batches(sequences, parallel, layout, **options).parts


def test_rows_of_like_length_go_together_and_are_padded_no_further_than_their_longest() -> None:
    parts = _parts(by_hand(), 2)
    assert [_rows(part) for part in parts] == [[2, 1], [0]], "4 and 1 tokens, then 5"
    assert [part.tokens_BL.tolist() for part in parts] == [
        [[30, 31, 32, 33], [20, PAD, PAD, PAD]],
        [[10, 11, 12, 13, 14]],
    ]
    assert [part.width for part in parts] == [3, 3], "the time of the whole batch, so that tensors line up"
    assert [part.width for part in _parts(by_hand(), 2, width=7)] == [7, 7]


def test_lengths_are_padded_to_the_layouts_multiple() -> None:
    layout = replace(ALONE, tensor=4, sequence=True)
    parts = _parts(by_hand(), 2, layout)
    assert [tuple(part.tokens_BL.shape) for part in parts] == [(1, 8), (2, 4)]
    assert parts[0].tokens_BL[0, :5].tolist() == [10, 11, 12, 13, 14]
    assert parts[0].state_N.tolist() == [1, 2, 3] and parts[1].state_N.tolist() == [2 * 2 + 1], (
        "padding moves no position"
    )


def test_the_padding_of_a_batch_is_that_of_all_replicas() -> None:
    """Rows of 5, 4 and 1 tokens: together 15 are run, in two parts 5 + 2 x 4, and by two replicas the same, as three
    tokens of padding are not worth a third pass."""
    two = [replace(ALONE, data=2, data_rank=rank) for rank in (0, 1)]
    for size, layout, run in [(3, ALONE, 15), (2, ALONE, 13), (1, ALONE, 10), (2, two[0], 13), (2, two[1], 13)]:
        packed = micro_batches(by_hand(), ParallelConfig(micro_batch_size=size), layout)
        assert packed.padding == pytest.approx(1 - 10 / run), (size, layout.data)


def pairs(count: int) -> Sequences:
    """Pair p holds rows 2 p and 2 p + 1, of p + 2 and 2 tokens."""
    return to_sequences(
        [[row] for row in range(2 * count)], [[50] * (row // 2 + 1 if row % 2 else 1) for row in range(2 * count)], PAD
    )


@pytest.mark.parametrize(
    ("size", "tokens", "expected"),
    [
        (4, 0, [[6, 7, 4, 5], [2, 3, 0, 1], [8, 9]]),
        (3, 0, [[8, 9], [6, 7], [4, 5], [2, 3], [0, 1]]),
        (1, 0, [[8, 9], [6, 7], [4, 5], [2, 3], [0, 1]]),
        (99, 16, [[2, 3, 0, 1], [8, 9], [6, 7], [4, 5]]),
        (99, 20, [[6, 7, 4, 5], [2, 3, 0, 1], [8, 9]]),
    ],
)
def test_pairs_stay_together(size: int, tokens: int, expected: list[list[int]]) -> None:
    """The longest pair takes 2 x 6 tokens with its padding, the others 10, 8, 6 and 4."""
    parts = _parts(pairs(5), size, tokens=tokens, unit=2)
    assert [_rows(part) for part in parts] == expected
    assert [part.units_U.tolist() for part in parts] == [[row // 2 for row in rows[::2]] for rows in expected]


def test_pairs_are_divided_among_data_parallel_ranks_whole() -> None:
    """Two replicas run 12 + 10 and 12 + 8 tokens."""
    rows = [
        [row for part in _parts(pairs(5), 4, replace(ALONE, data=2, data_rank=rank), unit=2) for row in _rows(part)]
        for rank in (0, 1)
    ]
    assert rows == [[2, 3, 0, 1, 6, 7], [8, 9, 4, 5]]


def _everywhere(rank: int, sizes: dict[str, int], size: int = 1, tokens: int = 0) -> Any:
    layout = runtime.initialize(ParallelConfig(timeout_minutes=1, **sizes), "cpu")

    class FakeEngine:
        def __init__(self) -> None:
            self.layout = layout

        def forward(self, batches: Any, last_stage: Any) -> Any:
            return [last_stage(None, None, part) for part in batches] if layout.is_last_stage else []

    def last_stage(model: Any, hidden: Any, part: MicroBatch) -> dict[str, torch.Tensor]:
        return {"first": part.tokens_BL[:, 0].float(), "logp": part.to_response_BT(part.target_N.float())}

    engine: Engine = FakeEngine()  # type: ignore[assignment]
    parallel = ParallelConfig(micro_batch_size=size, tokens_per_micro_batch=tokens)
    packed = micro_batches(by_hand(), parallel, layout)
    return run_forward(engine, packed, last_stage, {"logp": 3, "first": 0})


@pytest.mark.parametrize(("size", "tokens"), [(1, 0), (2, 0), (9, 8)])
@pytest.mark.parametrize("sizes", [{}, {"pipeline": 2}])
def test_results_of_all_rows_are_on_every_rank_in_order(sizes: dict[str, int], size: int, tokens: int) -> None:
    for found in run_ranks(_everywhere, 2, sizes, size, tokens):
        assert found["first"].tolist() == [10, 20, 30]
        assert found["logp"].tolist() == [[12, 13, 14], [0, 0, 0], [33, 0, 0]]


def test_a_replica_without_rows_of_its_own_changes_no_result() -> None:
    """Four replicas and three rows, as in a small evaluation."""
    for found in run_ranks(_everywhere, 4, {}):
        assert found["first"].tolist() == [10, 20, 30]
        assert found["logp"].tolist() == [[12, 13, 14], [0, 0, 0], [33, 0, 0]]
