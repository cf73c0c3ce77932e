"""Judges that are rules of thumb, to try the whole of an evaluation with, and to see what a rule alone would say."""

from __future__ import annotations

from collections.abc import Sequence


def longer(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[str]:
    """The response with more words wins: what a judge would say that takes length for quality."""
    found = []
    for one, other in zip(first, second, strict=True):
        difference = len(one.split()) - len(other.split())
        found.append("tie" if difference == 0 else "A" if difference > 0 else "B")
    return found
