"""Which responses are alike: by hand, against exact Jaccard indices, and what does not change the answer."""

from __future__ import annotations

import time

import pytest
import torch

from gipo_mc.algorithms.responses.likeness import (
    FEWEST_OTHERS,
    NEAR,
    SHINGLE,
    likeness,
    repetition,
    response_tokens,
)
from gipo_mc.types import Sequences


def sequences_of(rows: list[tuple[list[int], list[int]]], spare: int = 0) -> Sequences:
    """Of (prompt, response) each; what stands behind a row is rubbish, as it may be."""
    longest = max(len(p) + len(r) for p, r in rows) + spare
    tokens = [[*p, *r, *range(90_000, 90_000 + longest - len(p) - len(r))] for p, r in rows]
    lengths = torch.tensor([[len(p), len(r)] for p, r in rows])
    return Sequences(torch.tensor(tokens).reshape(len(rows), longest), lengths[:, 0], lengths[:, 1])


def random_rows(count: int, length: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    responses = torch.randint(0, 32_000, (count, length), generator=generator).tolist()
    return [([1, 2, row], response) for row, response in enumerate(responses)]


def jaccard(one: list[int], other: list[int]) -> float:
    a, b = ({tuple(r[i : i + SHINGLE]) for i in range(len(r) - SHINGLE + 1)} for r in (one, other))
    return len(a & b) / len(a | b)


def test_the_same_response_to_other_prompts_is_seen_and_to_the_same_prompt_is_none() -> None:
    said = [5, 6, 7, 8]
    found = likeness(sequences_of([([1], said), ([2], said), ([3], [5, 6, 7, 9]), ([4], [11, 12]), ([4], [11, 12])]))
    assert found.identical_B.tolist() == [True, True, False, False, False]
    assert found.near_B.tolist() == [True, True, False, False, False]  # one of two shingles is another
    assert (
        not found.other_BB[3, 4] and not found.near_BB.diagonal().any() and torch.equal(found.near_BB, found.near_BB.T)
    )


@pytest.mark.parametrize("said", [[], [7], [7, 8], [7, 8, 9]])
def test_short_and_empty_responses_are_compared_too(said: list[int]) -> None:
    found = likeness(sequences_of([([1, 1], said), ([2], said), ([3], [4, 4, 4, 4])]))
    assert found.identical_B.tolist() == [True, True, False] and found.near_B.tolist() == [True, True, False]


def test_a_sentence_with_a_word_changed_is_near_and_half_of_another_is_not() -> None:
    rows = random_rows(3, 20)
    changed, half = [*rows[0][1]], [*rows[0][1][:10], *rows[1][1][:10]]
    changed[9] = 7
    found = likeness(sequences_of([*rows, ([50], changed), ([51], half)]))
    assert found.near_BB[0].tolist() == [False, False, False, True, False]
    assert not found.identical_B.any()


def test_the_estimate_keeps_to_the_exact_index() -> None:
    base = random_rows(1, 256)[0][1]
    generator = torch.Generator().manual_seed(4)
    rows = [([0], base)]
    for row in range(1, 120):
        other = [*base]
        for place in torch.randint(0, 256, (row // 2,), generator=generator).tolist():
            other[place] = 40_000 + row
        rows.append(([row], other))
    near = likeness(sequences_of(rows)).near_BB[0].tolist()
    for row in range(1, 120):
        exact = jaccard(base, rows[row][1])
        assert abs(exact - NEAR) < 0.2 or near[row] == (exact > NEAR), (row, exact)
    assert near[1:20].count(True) == 19 and not any(near[110:])


def test_unrelated_responses_of_any_length_are_not_alike() -> None:
    for length in (4, 6, 8, 30, 256):
        assert not likeness(sequences_of(random_rows(200, length))).near_B.any(), length


def test_order_padding_and_dtype_of_the_batch_change_nothing() -> None:
    rows = [([row], [5, 6, 7, 8, 9, row % 3]) for row in range(12)] + random_rows(4, 9)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    found, other = likeness(sequences_of(rows)), likeness(sequences_of([rows[row] for row in order], spare=9))
    assert torch.equal(found.near_BB[order][:, order], other.near_BB)
    assert torch.equal(found.identical_B[order], other.identical_B)
    assert repetition(sequences_of(rows))[order].tolist() == repetition(sequences_of([rows[r] for r in order])).tolist()


def test_the_commonest_response_and_its_share() -> None:
    said = list(range(100, 120))
    rows = random_rows(10, 20) + [([50 + row], said) for row in range(6)]
    found = likeness(sequences_of(rows))
    assert found.commonest() == pytest.approx(5 / 15)
    assert found.commonest(list(range(10))) == 0.0
    assert found.commonest([*range(5), *range(10, 16)]) == pytest.approx(5 / 10)
    assert FEWEST_OTHERS == 8 and found.commonest(list(range(10, 16))) == 0.0, "of five others nothing is said"


def test_samples_of_one_prompt_do_not_make_an_answer_common() -> None:
    rows = [([prompt], [7, 8, 9, prompt // 5]) for prompt in range(10) for _ in range(4)]
    assert likeness(sequences_of(rows)).commonest() == pytest.approx(16 / 36)  # four other prompts of the nine


def test_repetition_by_hand() -> None:
    loop = [1, 2] * 6  # 9 pieces, 2 of them new
    rows = [([9], loop), ([9, 9], [1, 2, 3, 4, 5]), ([9], [1, 2, 3]), ([9], []), ([9], [3] * 20)]
    assert repetition(sequences_of(rows)).tolist() == pytest.approx([7 / 9, 0.0, 0.0, 0.0, 16 / 17])


def test_the_tokens_of_the_responses() -> None:
    found = response_tokens(sequences_of([([1, 2, 3], [4]), ([5], [6, 7, 8]), ([9], [])]))
    assert found.tolist() == [[4, -1, -1], [6, 7, 8], [-1, -1, -1]]
    empty = Sequences(torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0).long(), torch.zeros(0).long())
    assert likeness(empty).commonest() == 0.0 and repetition(empty).tolist() == []


def test_a_usual_batch_takes_milliseconds() -> None:
    sequences = sequences_of(random_rows(512, 256))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = []
        for _ in range(5):
            begin = time.perf_counter()
            likeness(sequences)
            repetition(sequences)
            taken.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    assert min(taken) < 0.2  # about 15 ms; the bound is for machines that do other things
