"""Hooks of mkdocs: pages of the repository's root become pages of the site, links between the two go on to work, and
lists that are indented as on GitHub are indented as Python-Markdown wants them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: File of the root -> page of the site.
PAGES = {name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")} | {"README.md": "index.md"}
_FILES = {page: name for name, page in PAGES.items()}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File  # the rest is tested without mkdocs

    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return for_site(markdown, page.file.src_uri)


def for_site(markdown: str, page: str) -> str:
    """The text of a page (a path in the site) as the site needs it. Blocks of code stay as they are."""
    source = _FILES.get(page, f"docs/{page}")
    link = _link(source, page)
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _indented(_LINK.sub(link, part)) for part in parts)


def _link(source: str, page: str) -> Callable[[re.Match[str]], str]:
    def replaced(found: re.Match[str]) -> str:
        text, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return found[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else "")
        if not there:  # a file of the repository that is no page: its path says where it is
            return text if text.strip("`") == file else f"{text} (`{file}`)"
        return f"[{text}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{hash_}{anchor})"

    return replaced


def _indented(text: str) -> str:
    """Items inside of items, and what continues a numbered one, behind four spaces."""
    text = re.sub(r"^   (?=\S)", "    ", text, flags=re.MULTILINE)
    return re.sub(r"^  (?=[-*] )", "    ", text, flags=re.MULTILINE)
