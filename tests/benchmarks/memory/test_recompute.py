"""The record of recomputation: what was promised of it, and its table on the page."""

from __future__ import annotations

import json

from benchmarks.common.documents import inserted
from benchmarks.memory.recompute import MEMORY_LIMIT, PAGE, RECORD, TIME_LIMIT, WAYS, rows_of, table


def test_the_record_reaches_what_was_asked_for_and_is_what_the_page_shows() -> None:
    record = json.loads(RECORD.read_text())
    rows = record["rows"]
    assert [row["recompute"] for row in rows] == list(WAYS) and record["sizes"]["layers"] == 16
    full = rows[-1]
    assert full["memory_share"] <= MEMORY_LIMIT and full["resident_share"] <= MEMORY_LIMIT
    assert full["time_share"] <= TIME_LIMIT and all(row["same_gradients"] for row in rows)
    page = PAGE.read_text(encoding="utf-8")
    assert inserted(page, RECORD.name, table(rows)) == page


def test_shares_are_of_the_fastest_step_without_recomputation() -> None:
    found = {
        "none": {"memory": 100, "resident": 200, "wall": [2.0, 3.0], "processor": [1.0]},
        "full": {"memory": 30, "resident": 50, "wall": [9.0, 2.5], "processor": [1.5]},
    }
    full = rows_of(found)[1]
    shares = (full["memory_share"], full["resident_share"], full["time_share"], full["processor_share"])
    assert shares == (0.3, 0.25, 1.25, 1.5)
