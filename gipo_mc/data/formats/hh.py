"""hh: `chosen` and `rejected` are dialogues, each one string of "\\n\\nHuman:" and "\\n\\nAssistant:" turns.

Published by Anthropic/hh-rlhf.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, LeftOut, RowError, string
from gipo_mc.data.formats.example import Dialogue, Parsed, sides
from gipo_mc.types import Message

_TURN = re.compile(r"\n\n(Human|Assistant):")


def matches(row: Mapping[str, Any]) -> bool:
    return {"chosen", "rejected"} <= row.keys()


def is_likely(row: Mapping[str, Any]) -> bool:
    """Does either side begin as such a dialogue does, or hold no text at all?"""
    texts = [value for key in ("chosen", "rejected") if isinstance(value := row[key], str)]
    return not texts or any(_TURN.match(text) for text in texts)


def parse(row: Fields, needs: Collection[str]) -> Parsed:
    return sides(row, needs, _dialogue)


def _dialogue(row: Fields, key: str) -> Dialogue:
    """Turns before the last assistant turn, and that turn.

    Only a name at the start of a paragraph begins a turn: "Human:" inside a line is text.
    """
    text = string(row, key)
    before, *turns = _TURN.split(text)
    if before.strip() or not turns:
        raise RowError(f"'{key}' does not begin with \\n\\nHuman: or \\n\\nAssistant:, as an HH dialogue does")
    names, contents = turns[::2], turns[1::2]
    if names[-1] != "Assistant":
        raise LeftOut("dialogues that end with a human turn")
    messages = tuple(
        Message("user" if name == "Human" else "assistant", content.strip())
        for name, content in zip(names[:-1], contents[:-1], strict=True)
    )
    return messages, contents[-1]
