"""The record of saves: what was promised of them, and their table on the page."""

from __future__ import annotations

import json

from benchmarks.checkpoints.run_state import PAGE, RECORD, table
from benchmarks.common.documents import inserted


def test_the_record_reaches_what_was_asked_for_and_is_what_the_page_shows() -> None:
    runs = json.loads(RECORD.read_text())["runs"]
    rows = {(run["parameters"], layout): row for run in runs for layout, row in run["layouts"].items()}
    now, before = rows[2.5e8, "DP2"]["now"], rows[2.5e8, "DP2"]["before"]
    assert now["save"]["wall"] <= before["save"]["wall"] / 2
    assert now["save"]["peak"] <= 0.6 * before["save"]["peak"]
    assert now["background"]["blocked"] <= 0.1 * now["save"]["wall"]
    assert now["verify"]["second start"] <= before["verify"]["second start"] / 2
    page = PAGE.read_text(encoding="utf-8")
    assert inserted(page, RECORD.name, table(runs)) == page


def test_a_cell_has_the_earlier_build_in_brackets_and_memory_beside_the_state() -> None:
    own = {
        "save": {"wall": 2.0, "state": 4e9, "peak": 5e9},
        "verify": {"first start": 1.0, "second start": 0.5},
    }
    now = own | {"background": {"blocked": 0.25, "update": 0.125, "update_beside": 4.0}}
    lines = table(
        [{"parameters": 1e6, "layouts": {"TP2": {"before": own, "now": now}, "1": {"now": own}}}]
    ).splitlines()
    assert lines[2] == (
        "| 1 million, TP2 | 2.00 (2.00) | 1.00 (1.00) | 1.00 (1.00) | 0.50 (0.50) | 0.25 | 4.00, alone 0.12 |"
    )
    assert lines[3] == "| 1 million, 1 | 2.00 | 1.00 | 1.00 | 0.50 |  |  |"
