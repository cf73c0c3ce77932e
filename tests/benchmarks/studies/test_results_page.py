"""docs/results.md, which people write, quotes the tables of docs/results/ and the records, which programs write."""

from __future__ import annotations

import json
import re

from benchmarks.common.documents import END
from benchmarks.studies import tables
from tests.source_rules import ROOT

PAGE = ROOT / "docs" / "results.md"
TABLES = sorted((ROOT / "docs" / "results").glob("*.md"))
RECORDS = ROOT / "benchmarks" / "results"


def _cells(text: str) -> set[tuple[str, str]]:
    """(label of the row without "minus PPO", cell with an interval) of all table rows."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {(row[0].removesuffix(" minus PPO"), cell) for row in rows for cell in row[1:] if "±" in cell}


def _intervals(text: str) -> set[str]:
    """Every difference with its interval, wherever it stands."""
    return set(re.findall(r"[+-]\d\.\d{3}\s±\s\d\.\d{3}", text))


def test_the_opening_table_quotes_the_records() -> None:
    opening = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    pages = "\n".join(page.read_text(encoding="utf-8") for page in TABLES)
    generated = "\n".join(re.findall(rf"<!-- table of .*?{END}", pages, flags=re.DOTALL))
    assert len(_cells(opening)) == 10
    assert _cells(opening) <= _cells(generated), _cells(opening) - _cells(generated)
    changed = opening.replace("+0.084", "+0.085")
    assert not _cells(changed) <= _cells(generated)


def test_every_difference_that_the_pages_state_is_of_a_record() -> None:
    records = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    known = _intervals("\n".join(tables.table(record, part) for record in records for part in tables.parts(record)))
    for page in (PAGE, *TABLES):
        stated = _intervals(page.read_text(encoding="utf-8"))
        assert stated <= known, f"{page.name}: {stated - known}"
    assert len(_intervals(PAGE.read_text(encoding="utf-8"))) > 10 and "+0.084 ± 0.032" not in known


def test_each_page_says_how_its_tables_are_made() -> None:
    for page in TABLES:
        text = page.read_text(encoding="utf-8")
        said = re.sub(r" \\\n *", " ", text)
        for record in set(re.findall(r"<!-- table of (benchmarks/results/\w+\.json)", text)):
            assert re.search(
                rf"^    python benchmarks/\S+\.py --table {record} --into docs/results/{page.name}", said, re.M
            )
