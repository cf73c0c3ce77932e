"""Reports read back as HTML, and run folders written line by line."""

import json
from html.parser import HTMLParser
from pathlib import Path

from gipo_mc.report.report import build_report


class Page(HTMLParser):
    """Tags and attributes of a page, its text, the titles of its charts, and whether every element was closed."""

    VOID = ("meta", "br", "path", "rect", "input", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h4" and "figure" in self.open:
            self.titles.append(data)


def page_of(runs, out) -> Page:
    return Page(build_report(runs, out).read_text(encoding="utf-8"))


def write_run(path: Path, rows, status=None, config="") -> Path:
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status:
        (path / "run_status.json").write_text(json.dumps(status))
    if config:
        (path / "config.yaml").write_text(config)
    return path
