"""The plan of a batch, without a model: who runs when, in which slot, on which pages."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gipo_mc.generation.pages import Pages
from gipo_mc.generation.schedule import Decode, Prefill, Schedule
from gipo_mc.models.kv_cache import PAGE, pages_for


def test_pages_are_free_when_their_last_owner_gives_them_back() -> None:
    pages = Pages(4)
    first = pages.take(3)
    assert first == [0, 1, 2] and pages.free == 1
    assert pages.share(first[:2]) == [0, 1]
    pages.give_back(first)
    assert pages.free == 2 and pages.take(1) == [2], "pages 0 and 1 have another owner"
    pages.give_back([0, 1])
    assert pages.take(2) == [0, 1] and pages.most_held == 3


def played(schedule: Schedule, lengths: list[int], groups: int) -> list[Prefill | Decode]:
    """All jobs of a batch whose rows end after `lengths` tokens, each group in its turn."""
    drawn: Counter[int] = Counter()
    jobs: list[Prefill | Decode] = []
    for tick in range(10_000):
        if schedule.is_over:
            return jobs
        job = schedule.next_job(tick % groups)
        if job is not None:
            jobs.append(job)
            drawn.update(job.all_rows)
            schedule.end([row for row in job.all_rows if drawn[row] == lengths[row]])
    raise AssertionError("the batch never ends")


def test_all_rows_at_once() -> None:
    """One prefill, then as many positions as the longest response has tokens beyond its first."""
    prompts = [[1] * n for n in (5, 40, 17)]
    jobs = played(Schedule(prompts, 8, slots=3, pages=20, prefill_tokens=100), [8, 3, 1], 1)
    assert isinstance(jobs[0], Prefill) and jobs[0].rows == [[1], [2], [0]], "longest first"
    assert [sorted(job.rows) for job in jobs[1:] if isinstance(job, Decode)] == [[0, 1]] * 2 + [[0]] * 5


def test_the_prefill_budget_cuts_chunks_and_a_longer_prompt_runs_alone() -> None:
    prompts = [[row] * n for row, n in enumerate((30, 6, 5, 4, 4))]
    jobs = played(Schedule(prompts, 4, slots=5, pages=50, prefill_tokens=11), [4] * 5, 1)
    assert [job.rows for job in jobs[:3]] == [[[0]], [[1], [2]], [[3], [4]]]


def test_a_slot_is_filled_again_when_its_row_ends() -> None:
    prompts = [[row] * 4 for row in range(4)]
    jobs = played(Schedule(prompts, 9, slots=2, pages=4, prefill_tokens=100), [2, 5, 1, 3], 1)
    assert [job.rows for job in jobs] == [
        [[0], [1]],
        [0, 1],  # row 0 ends
        [[2]],  # its first token ends row 2 in slot 0
        [[3]],
        [1, 3],
        [1, 3],
        [1],
    ]
    assert jobs[2].slots == [[0]] and jobs[3].slots == [[0]]


def test_equal_prompts_share_a_prefill_and_its_full_pages() -> None:
    prompts = [[7] * (PAGE + 3), [8], [7] * (PAGE + 3), [7] * (PAGE + 3)]
    schedule = Schedule(prompts, PAGE, slots=4, pages=9, prefill_tokens=100)
    job = schedule.next_job(0)
    assert isinstance(job, Prefill) and job.rows == [[0, 2, 3], [1]] and schedule.tokens(job) == PAGE + 4
    first, second, third = (job.pages[slot] for slot in job.slots[0])
    assert first[0] == second[0] == third[0], "the full page of the prompt"
    assert len({*first[1:], *second[1:], *third[1:]}) == 6, "what comes after it is each row's own"
    assert job.copies == [(first[1], second[1]), (first[1], third[1])]
    schedule.end([0])
    assert first[0] not in schedule.pages.take(schedule.pages.free), "others still read it"


def test_full_prompts_need_no_copy() -> None:
    job = Schedule([[1] * PAGE] * 2, 4, slots=2, pages=4, prefill_tokens=100).next_job(0)
    assert isinstance(job, Prefill) and job.copies == [] and job.rows == [[0, 1]]


def test_rows_wait_for_pages() -> None:
    """Room for two sequences of two pages: three slots, but never more than two rows at work."""
    prompts = [[row] * PAGE for row in range(5)]
    jobs = played(Schedule(prompts, 4, slots=3, pages=5, prefill_tokens=100), [4] * 5, 1)
    assert max(len(job.all_rows) for job in jobs) == 2
    assert sorted(row for job in jobs if isinstance(job, Prefill) for row in job.all_rows) == list(range(5))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_any_batch_comes_to_its_end(groups: int, seed: int) -> None:
    """Every row is run once and gets all its tokens; no slot or page is ever given twice; all of them come back."""
    rng = np.random.default_rng(seed)
    new, count = int(rng.integers(1, 40)), int(rng.integers(1, 30))
    distinct = [rng.integers(0, 9, rng.integers(1, 60)).tolist() for _ in range(max(1, count // 2))]
    prompts = [distinct[rng.integers(len(distinct))] for _ in range(count)]
    lengths = rng.integers(1, new + 1, count).tolist()
    most = max(pages_for(len(prompt) + new) for prompt in prompts)
    pages = most + int(rng.integers(0, 60))
    schedule = Schedule(
        prompts, new, slots=groups + int(rng.integers(0, 8)), pages=pages, prefill_tokens=50, groups=groups
    )
    drawn: Counter[int] = Counter()
    place: dict[int, int] = {}
    for tick in range(100_000):
        if schedule.is_over:
            break
        job = schedule.next_job(tick % groups)
        if job is None:
            continue
        assert job.group == tick % groups
        drawn.update(job.all_rows)
        if isinstance(job, Prefill):
            for rows, slots in zip(job.rows, job.slots, strict=True):
                assert len({tuple(prompts[row]) for row in rows}) == 1
                assert not set(slots) & set(place.values()) and not set(rows) & set(place)
                assert {slot % groups for slot in slots} == {job.group}
                place |= dict(zip(rows, slots, strict=True))
        else:
            assert [place[row] for row in job.rows] == job.slots
        ended = [row for row in job.all_rows if drawn[row] == lengths[row]]
        assert schedule.is_due(job) == any(drawn[row] == new for row in job.all_rows)
        schedule.end(ended)
        for row in ended:
            del place[row]
    assert schedule.is_over and schedule.pages.free == pages
    assert [drawn[row] for row in range(count)] == lengths


def test_groups_hold_about_the_same_number_of_rows() -> None:
    """No group of a pipeline takes all rows of a short queue."""
    schedule = Schedule([[row] for row in range(6)], 4, slots=12, pages=20, prefill_tokens=100, groups=2)
    sizes = [len(job.all_rows) for job in (schedule.next_job(0), schedule.next_job(1)) if job is not None]
    assert sizes == [3, 3]
