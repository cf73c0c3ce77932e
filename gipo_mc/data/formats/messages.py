"""messages: lists of {role, content} under `messages`; or `chosen` and `rejected`; or `prompt`, with `completion` or
with both, which may be the assistant's text alone. The format of chat models, and of most data sets on the hub since
2024."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, RowError, kind, says, string, wrong
from gipo_mc.data.formats.example import Dialogue, Parsed, role_of, sides, wanted
from gipo_mc.types import Message

#: Fields of a message that make it another thing than its text.
_CALLS = ("tool_calls", "function_call", "tool_call_id")


def matches(row: Mapping[str, Any]) -> bool:
    return any(isinstance(row.get(key), list) for key in ("messages", "prompt", "chosen", "rejected", "completion"))


def parse(row: Fields, needs: Collection[str]) -> Parsed:
    if isinstance(row.peek("prompt"), list):
        prompt = message_list(row, "prompt")
        key = next((key for key in ("chosen", "completion") if row.has(key)), "chosen")
        chosen = _single_response(row, key) if wanted(row, key, needs) else None
        rejected = _single_response(row, "rejected") if wanted(row, "rejected", needs) else None
        if prompt[-1].role == "assistant":
            raise RowError("'prompt' ends with an assistant message: it must end with the one to answer")
        return prompt, chosen, rejected, ""
    if not row.has("prompt") and not row.has("messages") and (key := _answer_alone(row)):
        raise RowError(f"there is no 'prompt', and '{key}' is an answer alone: give what it answers, in either")
    if row.has("chosen") or ("chosen" in row and not row.has("messages")):
        return sides(row, needs, dialogue)
    messages = message_list(row, "messages")
    if messages[-1].role == "assistant":
        return *_split(messages, "messages"), None, ""
    return messages, None, None, ""


def dialogue(row: Fields, key: str) -> Dialogue:
    """The messages of a field before the last, and the last one's text, which is the assistant's. Raises RowError."""
    return _split(message_list(row, key), key)


def _split(messages: tuple[Message, ...], key: str) -> Dialogue:
    if messages[-1].role != "assistant" or len(messages) < 2:
        raise RowError(f"'{key}' must end with an assistant message, after at least one other")
    return messages[:-1], messages[-1].content


def _answer_alone(row: Fields) -> str:
    """The first field whose value can only be the assistant's answer to a prompt elsewhere; "" without one."""
    for key in ("chosen", "rejected", "completion"):
        value = row.peek(key)
        last = value[0] if isinstance(value, list) and len(value) == 1 else None
        role = last.get("role", last.get("from")) if isinstance(last, Mapping) else None
        if isinstance(value, str) or role_of(role) == "assistant":
            return key
    return ""


def _single_response(row: Fields, key: str) -> str:
    if isinstance(row.peek(key), str):
        return string(row, key).strip()
    messages = message_list(row, key)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise RowError(f"'{key}' must be one assistant message, because the row has a 'prompt'")
    return messages[0].content


def message_list(row: Fields, key: str) -> tuple[Message, ...]:
    """The messages of a field, {role, content} or {from, value} each. Raises RowError."""
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise RowError(wrong(row, key, "a list of messages"))
    return tuple(message(row, entry, key, f"'{key}'[{position}]") for position, entry in enumerate(value))


def message(row: Fields, entry: Any, key: str, name: str) -> Message:
    """One message of a field. key: the field; name: what to call the message in an error. Raises RowError."""
    if not isinstance(entry, Mapping):
        raise RowError(f"{name} is {kind(entry)}, not an object with role and content")
    role_key, content_key = ("from", "value") if "from" in entry and "role" not in entry else ("role", "content")
    role = role_of(entry.get(role_key))
    if role is None:
        raise RowError(f"{name} has the role {entry.get(role_key)!r}, not system, user or assistant")
    if call := next((field for field in _CALLS if says(entry.get(field))), None):
        raise RowError(f"{name} has {call}, and calls of tools are not text to learn: leave the dialogue out")
    for field, held in entry.items():
        if field not in (role_key, content_key) and says(held):
            row.ignore(key, field)
    return Message(role, string(entry, content_key, f"{name}.{content_key}").strip())
