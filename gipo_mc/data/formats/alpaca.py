"""alpaca: `instruction`, `input` (may be empty) and `output`; `text`, the same rendered, is not used.

Published by tatsu-lab/alpaca and many after it; databricks-dolly-15k names them instruction, context, response, and
adds `category`, which is the domain. With `chosen` and `rejected` in place of `output` it is a pair; `history` is a
list of earlier [instruction, answer] (LLaMA-Factory). The prompt is a user's message: the instruction, and its input
below it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, RowError, first, kind, optional, string
from gipo_mc.data.formats.example import Parsed, label
from gipo_mc.types import Message


def matches(row: Mapping[str, Any]) -> bool:
    return "instruction" in row and not row.keys() & {"prompt", "messages"}


def parse(row: Fields, needs: Collection[str]) -> Parsed:
    parts = (string(row, "instruction").strip(), (first(row, "input", "context") or "").strip())
    question = Message("user", "\n\n".join(part for part in parts if part))
    chosen = first(row, "chosen", "output", "response")
    if row.has("text"):
        _ = row["text"]  # the instruction and its output again
    return (*_history(row), question), chosen, optional(row, "rejected"), label(row, "category")


def _history(row: Fields) -> tuple[Message, ...]:
    messages: list[Message] = []
    for position, turn in enumerate(row.get("history") or ()):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise RowError(f"'history'[{position}] is {kind(turn)}, not a list of an instruction and its answer")
        messages += [Message("user", turn[0].strip()), Message("assistant", turn[1].strip())]
    return tuple(messages)
