"""What stands for the content of a data set when a run continues."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gipo_mc.data.sets import DataSet, DemonstrationSet, SourceReport, TokenRows, seen_in_training

ROWS = [([1, 2], [3]), ([4], [5, 6]), ([7], [8])]


def _set(
    rows: Sequence[tuple[list[int], list[int]]] = ROWS, domains: str = "aab", kept: Sequence[int] = (2, 1)
) -> DataSet[object]:
    columns = TokenRows(), TokenRows()
    for row in rows:
        for column, ids in zip(columns, row, strict=True):
            column.append(ids)
    reports = [SourceReport(f"file{number}", kept=count) for number, count in enumerate(kept)]
    return DemonstrationSet(columns, list(domains), reports)  # type: ignore[return-value]


def _hashes(data: DataSet[object], *, named_domains: bool = False) -> list[str]:
    return [source["sha256"] for source in data.sources(named_domains=named_domains)]


def test_each_source_has_its_rows_and_a_hash_of_its_own() -> None:
    found = _set().sources()
    assert [(source["source"], source["rows"]) for source in found] == [("file0", 2), ("file1", 1)]
    assert found == _set().sources() and len({source["sha256"] for source in found}) == 2
    assert _hashes(_set(ROWS[:2], "aa", [2])) == _hashes(_set())[:1]


@pytest.mark.parametrize(
    "first",
    [
        [([1, 2], [3]), ([4], [5, 9])],
        [([1, 2], [3]), ([4, 5], [6])],  # the same ids, cut elsewhere
        [([1], [2, 3]), ([4], [5, 6])],
        [([4], [5, 6]), ([1, 2], [3])],
    ],
)
def test_other_tokens_another_cut_or_another_order_are_other_rows(first: list[tuple[list[int], list[int]]]) -> None:
    changed, same = _hashes(_set([*first, ROWS[2]]))
    assert changed != _hashes(_set())[0] and same == _hashes(_set())[1]


def test_domains_count_by_who_shares_one_and_by_their_order() -> None:
    assert _hashes(_set(domains="xxy")) == _hashes(_set(domains="aab"))
    assert _hashes(_set(domains="abb")) != _hashes(_set(domains="aab"))
    assert _hashes(_set(domains="bba")) != _hashes(_set(domains="aab"))
    assert _hashes(_set(domains="xxy"), named_domains=True) != _hashes(_set(domains="aab"), named_domains=True)
    assert _hashes(_set(), named_domains=True) == _hashes(_set(), named_domains=True)


def test_a_source_of_which_nothing_is_kept_is_a_source() -> None:
    assert [source["rows"] for source in _set(kept=(3, 0)).sources()] == [3, 0]


def test_held_out_rows_that_are_trained_on_are_said() -> None:
    held_out = _set([([4], [5, 6]), ([4], [5]), ([7], [8]), ([7], [8])], "aaaa", [4])
    assert held_out.rows_in(_set()) == 3, "rows as a whole: ([4], [5]) is another answer"
    assert "3 of 4 held-out rows are trained on" in seen_in_training(_set(), held_out)
    assert seen_in_training(_set(), _set([([4, 5], [6])], "a", [1])) == ""


def test_equal_rows_of_the_built_in_task_are_its_mixture() -> None:
    held_out = _set()
    for report in held_out.reports:
        report.format = "builtin"
    assert held_out.rows_in(_set()) == 3 and seen_in_training(_set(), held_out) == ""
