"""The opening table of docs/results.md, which people write, quotes the tables below it, which programs write."""

from __future__ import annotations

import re

from benchmarks.common.documents import END
from tests.source_rules import ROOT


def _cells(text: str) -> set[tuple[str, str]]:
    """(label of the row without "minus PPO", cell with an interval) of all table rows."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {(row[0].removesuffix(" minus PPO"), cell) for row in rows for cell in row[1:] if "±" in cell}


def test_the_opening_table_quotes_the_records() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    opening, _, rest = text.partition("\n## ")
    generated = "\n".join(re.findall(rf"<!-- table of .*?{END}", rest, flags=re.DOTALL))
    assert len(_cells(opening)) == 10
    assert _cells(opening) <= _cells(generated), _cells(opening) - _cells(generated)
    changed = opening.replace("+0.084", "+0.085")
    assert not _cells(changed) <= _cells(generated)
