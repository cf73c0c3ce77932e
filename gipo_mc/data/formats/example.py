"""What a row becomes, and what the formats share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from gipo_mc.data.fields import Fields, LeftOut, RowError, kind
from gipo_mc.types import Message, Role


@dataclass(frozen=True)
class Example:
    """prompt: a text as it stands, or the messages before the response. chosen: the response, the better one of two.

    domain: what the row itself says, "" if nothing. system: the row's system text, where the prompt is a text; messages
    begin with theirs. conversation: the dialogue that it is a turn of, "" where the row does not say. row: where it
    stands, "file:line". columns: all of it.
    """

    prompt: str | tuple[Message, ...]
    chosen: str | None
    rejected: str | None
    domain: str
    system: str = ""
    conversation: str = ""
    row: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


#: What a format makes of a row: prompt, chosen, rejected, and the domain that the row states, or "".
Parsed = tuple["str | tuple[Message, ...]", "str | None", "str | None", str]
Dialogue = tuple[tuple[Message, ...], str]  # the messages before the last turn, and that turn
#: Responses that a use may need.
BOTH = ("chosen", "rejected")

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


def role_of(value: object) -> Role | None:
    """The role that publishers mean by a name; None for tools and whatever else is none."""
    return _ROLES.get(str(value).lower())


def wanted(row: Fields, key: str, needs: Collection[str]) -> bool:
    """Is a field to be read: does it hold a value, or does the use need one?"""
    return row.has(key) or (key in row and key in needs)


def sides(row: Fields, needs: Collection[str], read: Callable[[Fields, str], Dialogue]) -> Parsed:
    """Two dialogues that differ in their last turn, or one of them. A null that nothing needs is no dialogue."""
    found = {key: read(row, key) for key in BOTH if wanted(row, key, needs)}
    prompt, _ = next(iter(found.values()), None) or read(row, "chosen")  # read says what is wrong
    if any(other != prompt for other, _ in found.values()):
        raise LeftOut("pairs of different prompts")
    chosen, rejected = (found[key][1] if key in found else None for key in BOTH)
    return prompt, chosen, rejected, ""


def one_of_two(row: Fields, key: str) -> int:
    """0 or 1, as a field says which of two responses it means. Raises RowError."""
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value not in (0, 1):
        raise RowError(f"'{key}' is {value!r}, not 0 or 1")
    return value


def number(row: Fields, key: str) -> float | None:
    """The number of a field that the row may lack. Raises RowError."""
    value = row.get(key)
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise RowError(f"'{key}' is {kind(value)}, not a number")
    return value


def label(row: Fields, *keys: str) -> str:
    """A label of the row's kind, under the first of these names that holds a text; "" without one."""
    return next((row[key] for key in keys if isinstance(row.peek(key), str) and row.peek(key)), "")
