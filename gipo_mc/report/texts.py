"""Texts of data and models as a page shows them: control characters made visible, long ones cut."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gipo_mc.run.console import number

#: Shown of a long prompt (its end, where the question is) and of a long response (its start), in characters.
PROMPT_SHOWN, RESPONSE_SHOWN = 600, 900


def readable(text: Any) -> str:
    """Text with its line breaks, other control characters replaced by a visible mark."""
    return "".join(
        c if c == "\n" or c.isprintable() or c == "\u3000" else "\N{REPLACEMENT CHARACTER}" for c in str(text)
    )


def prompt_shown(text: Any) -> str:
    """The end of a prompt, readable."""
    prompt = readable(text)
    return prompt if len(prompt) <= PROMPT_SHOWN else "…" + prompt[-PROMPT_SHOWN:]


def response_shown(text: Any) -> str:
    """The beginning of a response, readable."""
    response = readable(text)
    return response if len(response) <= RESPONSE_SHOWN else response[:RESPONSE_SHOWN] + "…"


def moment(text: str) -> str:
    """A time of run_status.json to the minute; a text that is none as it stands."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return readable(text)


def cell(value: Any) -> str:
    """A number of a log as a cell of a table, a dash where it is none."""
    if isinstance(value, int):
        return str(value)
    return number(value) if isinstance(value, float) else "–"
