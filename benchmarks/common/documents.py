"""Tables of records in documents: each stands between two markers, so that a command can put it there anew."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end of table -->"


def marker(source: str) -> str:
    """The line of a document behind which the table of the record `source` stands ("FILE" or "FILE: part")."""
    return f"<!-- table of {source} -->"


def inserted(document: str, source: str, table: str) -> str:
    """The document with the table of `source` between its markers replaced. Raises ValueError where there are none."""
    before, begin, rest = document.partition(marker(source))
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The document has no lines {marker(source)} and {END}: put them where the table belongs.")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def insert(page: Path, source: str, table: str) -> None:
    """Put the table of `source` between its markers on a page. Raises ValueError where there are none."""
    page.write_text(inserted(page.read_text(encoding="utf-8"), source, table), encoding="utf-8")
