"""helpsteer: answers rated by people (nvidia/HelpSteer, HelpSteer2, HelpSteer3).

1 and 2             prompt, response, helpfulness, correctness, coherence, complexity, verbosity (0 to 4)
2, preference       prompt, response_1, response_2, preference_strength (-3: the first is much better, to 3: the
                    second), split, preference_statement, preference_elaboration, ...
3, preference       domain, language, context (messages), response1, response2, overall_preference (-3 to 3),
                    individual_preference

A rated response is a demonstration where its helpfulness is 3 or 4 of 4. Pairs of strength 0 prefer nothing. Both are
left out and counted. HelpSteer2 writes the turns of a dialogue into its prompt, behind <extra_id_1>.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, LeftOut, RowError, string
from gipo_mc.data.formats.example import Parsed, number
from gipo_mc.data.formats.messages import message_list
from gipo_mc.types import Message

#: A response below it is no demonstration: 3 is "mostly helpful" in the guidelines of its annotators.
_HELPFUL = 3
_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
_PREFERENCES = {"preference_strength": ("response_1", "response_2"), "overall_preference": ("response1", "response2")}


def matches(row: Mapping[str, Any]) -> bool:
    keys = row.keys()
    rated = {"prompt", "response", "helpfulness"} <= keys
    return rated or any({name, *answers} <= keys for name, answers in _PREFERENCES.items())


def parse(row: Fields, needs: Collection[str]) -> Parsed:
    prompt = message_list(row, "context") if "context" in row else _turns(string(row, "prompt"))
    if prompt[-1].role == "assistant":
        raise LeftOut("dialogues that end with the assistant's turn before its response")
    preference = next((name for name in _PREFERENCES if name in row), None)
    if not needs:
        return prompt, None, None, ""
    if preference is None:
        helpfulness = number(row, "helpfulness")
        if helpfulness is None:
            raise RowError("'helpfulness' is null, not a number")
        if helpfulness < _HELPFUL:
            raise LeftOut(f"responses whose helpfulness is below {_HELPFUL} of 4")
        return prompt, string(row, "response"), None, ""
    strength = number(row, preference)
    if strength is None:
        raise RowError(f"'{preference}' is null, not a number from -3 to 3")
    if strength == 0:
        raise LeftOut("pairs of equal responses by their preference")
    first, second = _PREFERENCES[preference]
    better, worse = (first, second) if strength < 0 else (second, first)
    return prompt, string(row, better), string(row, worse), ""


def _turns(text: str) -> tuple[Message, ...]:
    """The messages of a prompt: one of the user's, or a dialogue with a name behind each <extra_id_1>."""
    begin, *turns = _TURN.split(text)
    messages = [Message("user", begin.strip())] if begin.strip() or not turns else []
    for name, content in zip(turns[::2], turns[1::2], strict=True):
        messages.append(Message("user" if name == "User" else "assistant", content.strip()))
    return tuple(messages)
