"""What people are told to judge by: a default for each kind of task, or the user's own text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from gipo_mc.errors import DataError
from gipo_mc.run.jsonl import read_file

#: The default of a domain is the first whose pattern its label holds: harmless_base, PKU-SafeRLHF, tldr.
_BY_LABEL = (
    ("harmless", re.compile("harm|safe", re.IGNORECASE)),
    ("helpful", re.compile("helpful", re.IGNORECASE)),
    ("summary", re.compile("tl;?dr|summar|cnn", re.IGNORECASE)),
    ("general", re.compile("")),
)
_LONGEST = 20_000


@dataclass(frozen=True)
class Guideline:
    """question: stands above each pair. paragraphs: behind it, and on the first screen."""

    question: str
    paragraphs: tuple[str, ...]


@cache
def guideline_of(domain: str) -> Guideline:
    """The default for the label of a domain; "" has the general one."""
    name = next(name for name, pattern in _BY_LABEL if pattern.search(domain))
    text = files(__package__).joinpath("templates", "guidelines", f"{name}.txt").read_text(encoding="utf-8")
    question, *paragraphs = _paragraphs(text)
    return Guideline(question, tuple(paragraphs))


def guideline_file(path: Path) -> Guideline:
    """The user's guideline for every domain: text whose paragraphs are parted by empty lines.

    Raises DataError where it cannot be read, is no UTF-8, empty, or longer than 20,000 characters.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"The guideline {path} cannot be read: {reason}. Give a text file in UTF-8.") from error
    paragraphs = _paragraphs(text)
    if not paragraphs or len(text) > _LONGEST:
        raise DataError(
            f"The guideline {path} holds {len(text):,} characters: give one of 1 to {_LONGEST:,}, as people will read."
        )
    return Guideline("Which response is better?", tuple(paragraphs))


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n")) if part.strip()]
