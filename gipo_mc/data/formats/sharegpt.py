"""sharegpt: `conversations` is a list of {from, value}, from human and gpt in turn, system before them.

Exports of ShareGPT, some of whose dialogues are empty, and what is published like it (OpenHermes, Vicuna's data). With
`chosen` and `rejected`, one such turn each, it is a pair behind the dialogue (LLaMA-Factory). `system` or
`system_prompt` is the system text, `category` the domain.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, LeftOut, RowError, optional
from gipo_mc.data.formats.example import BOTH, Parsed, label, wanted
from gipo_mc.data.formats.messages import message, message_list
from gipo_mc.types import Message


def matches(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("conversations"), list)


def parse(row: Fields, needs: Collection[str]) -> Parsed:
    if row.get("conversations") == []:
        raise LeftOut("dialogues without a turn")
    turns = message_list(row, "conversations")
    domain = label(row, "category")
    system = (optional(row, "system_prompt") or "").strip()
    if system and turns[0].role != "system":
        turns = (Message("system", system), *turns)
    if "chosen" in row:
        chosen, rejected = (_answer(row, key) if wanted(row, key, needs) else None for key in BOTH)
        if turns[-1].role == "assistant":
            raise RowError("'conversations' ends with the assistant's turn, and 'chosen' would answer it")
        return turns, chosen, rejected, domain
    if turns[-1].role == "assistant" and len(turns) > 1:
        return turns[:-1], turns[-1].content, None, domain
    if needs or turns[-1].role == "assistant":
        raise LeftOut("dialogues that end with a human turn" if needs else "dialogues of one turn, the assistant's")
    return turns, None, None, domain


def _answer(row: Fields, key: str) -> str:
    turn = message(row, row[key], key, f"'{key}'")
    if turn.role != "assistant":
        raise RowError(f"'{key}' is a turn of the {turn.role}, not of the assistant")
    return turn.content
