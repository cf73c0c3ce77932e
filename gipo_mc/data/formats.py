"""Row formats: one row of a file -> one `Example`, whatever the publisher called the fields.

hh        chosen, rejected: dialogues, each one string of "\\n\\nHuman:" and "\\n\\nAssistant:" turns
          (Anthropic/hh-rlhf)
tldr      info, summaries, choice (openai/summarize_from_feedback, comparisons); or subreddit, title, post, summary
          (the filtered TL;DR posts); or such a post as prompt with label, completion, or chosen and rejected
          (CarperAI/openai_summarize_tldr, trl-lib/tldr, CarperAI/openai_summarize_comparisons)
pairs     prompt and any of chosen, rejected, response, completion, all strings
messages  messages, or chosen and rejected, or prompt with completion or with both: lists of {role, content}

`auto` decides by the fields of a source's first row. A field that a use needs and the row lacks is a `RowError`;
a row in order that cannot be used (the two sides answer different prompts) is `LeftOut`: skipped and counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


class RowError(ValueError):
    """A malformed row; the message is the reason. The caller knows file and line."""


class LeftOut(Exception):
    """A row in order that is not used; the message is what such rows are called in the report."""


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """prompt: a text as it stands, or the messages before the response. chosen: the response, the better one of two.

    domain: what the row itself says, "" if nothing.
    """

    prompt: str | tuple[Message, ...]
    chosen: str | None
    rejected: str | None
    domain: str


_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_POST = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
_ARTICLE = "Article:\n\n{article}\n\nTL;DR:"
_TLDR = "TL;DR:"


def detect(row: Mapping[str, Any]) -> str:
    """The format of a row by its fields. Raises RowError where it is none."""
    keys = row.keys()
    if {"info", "summaries", "choice"} <= keys or {"post", "summary"} <= keys:
        return "tldr"
    texts = [row[key] for key in ("messages", "prompt", "chosen", "rejected", "completion") if key in keys]
    if any(isinstance(text, list) for text in texts):
        return "messages"
    if "prompt" in keys:
        return "tldr" if "label" in keys or str(row["prompt"]).startswith("SUBREDDIT:") else "pairs"
    if {"chosen", "rejected"} <= keys:
        return "hh"
    raise RowError(
        f"the fields {', '.join(sorted(map(str, keys))) or '(none)'} are of no known format: set data.format to one of "
        "hh (chosen, rejected), tldr, pairs (prompt, chosen, rejected) or messages, or rename the fields"
    )


def parse(row: Mapping[str, Any], format_name: str) -> Example:
    """The example of a row in a format. Raises RowError and LeftOut."""
    domain = row.get("domain")
    if domain is not None and not isinstance(domain, str):
        raise RowError(f"'domain' is {_kind(domain)}, not a string")
    prompt, chosen, rejected, own_domain = _PARSERS[format_name](row)
    return Example(prompt, chosen, rejected, domain or own_domain)


Parsed = tuple["str | tuple[Message, ...]", "str | None", "str | None", str]


# ------------------------------------------------------------------------------------------------------------------- hh
def _hh(row: Mapping[str, Any]) -> Parsed:
    chosen, chosen_last = _dialogue(row, "chosen")
    if "rejected" not in row:
        return chosen, chosen_last, None, ""
    rejected, rejected_last = _dialogue(row, "rejected")
    if chosen != rejected:
        raise LeftOut("pairs of different prompts")
    return chosen, chosen_last, rejected_last, ""


def _dialogue(row: Mapping[str, Any], key: str) -> tuple[tuple[Message, ...], str]:
    """Turns before the last assistant turn, and that turn.

    Only a name at the start of a paragraph begins a turn: "Human:" inside a line is text.
    """
    text = _string(row, key)
    first, *turns = _TURN.split(text)
    if first.strip() or not turns:
        raise RowError(f"'{key}' does not begin with \\n\\nHuman: or \\n\\nAssistant:, as an HH dialogue does")
    names, contents = turns[::2], turns[1::2]
    if names[-1] != "Assistant":
        raise LeftOut("dialogues that end with a human turn")
    messages = tuple(
        Message("user" if name == "Human" else "assistant", content.strip())
        for name, content in zip(names[:-1], contents[:-1], strict=True)
    )
    return messages, contents[-1]


# ---------------------------------------------------------------------------------------------------------------- tl;dr
def _tldr(row: Mapping[str, Any]) -> Parsed:
    if "summaries" in row:
        return _comparison(row)
    if "post" in row:
        prompt = _POST.format(**{key: _string(row, key).strip() for key in ("subreddit", "title", "post")})
        return prompt, _optional(row, "summary"), None, "tldr"
    prompt = _string(row, "prompt").rstrip()
    chosen = _first(row, "chosen", "label", "completion", "response")
    rejected = _optional(row, "rejected")
    if not prompt.endswith(_TLDR):
        # CarperAI/openai_summarize_comparisons writes the "TL;DR:" in front of each response.
        prompt += f"\n\n{_TLDR}"
        chosen, rejected = (text and text.strip().removeprefix(_TLDR) for text in (chosen, rejected))
    return prompt, chosen, rejected, "tldr"


def _comparison(row: Mapping[str, Any]) -> Parsed:
    """openai/summarize_from_feedback: Reddit posts, and CNN/DailyMail articles in some of the batches."""
    info, summaries, choice = row.get("info"), row.get("summaries"), row.get("choice")
    if not isinstance(info, Mapping):
        raise RowError(f"'info' is {_kind(info)}, not an object with the post")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, Mapping) for s in summaries):
        raise RowError(f"'summaries' is {_kind(summaries)}, not a list of two objects with a 'text'")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise RowError(f"'choice' is {choice!r}, not 0 or 1")
    texts = [_string(summary, "text") for summary in summaries]
    if info.get("post") is not None:
        fields = {key: (_optional(info, key) or "").strip() for key in ("subreddit", "title")}
        prompt, domain = _POST.format(post=_string(info, "post").strip(), **fields), "tldr"
    else:
        prompt, domain = _ARTICLE.format(article=_string(info, "article").strip()), "cnndm"
    return prompt, texts[choice], texts[1 - choice], domain


# ---------------------------------------------------------------------------------------------------------------- pairs
def _pairs(row: Mapping[str, Any]) -> Parsed:
    return _string(row, "prompt"), _first(row, "chosen", "response", "completion"), _optional(row, "rejected"), ""


# ------------------------------------------------------------------------------------------------------------- messages
def _messages(row: Mapping[str, Any]) -> Parsed:
    if isinstance(row.get("prompt"), list):
        prompt = _message_list(row, "prompt")
        key = next((key for key in ("chosen", "completion") if key in row), None)
        chosen = _single_response(row, key) if key else None
        rejected = _single_response(row, "rejected") if "rejected" in row else None
        if prompt[-1].role == "assistant":
            raise RowError("'prompt' ends with an assistant message: it must end with the one to answer")
        return prompt, chosen, rejected, ""
    if "chosen" in row:
        prompt, chosen = _split(_message_list(row, "chosen"), "chosen")
        if "rejected" not in row:
            return prompt, chosen, None, ""
        other, rejected = _split(_message_list(row, "rejected"), "rejected")
        if prompt != other:
            raise LeftOut("pairs of different prompts")
        return prompt, chosen, rejected, ""
    messages = _message_list(row, "messages")
    if messages[-1].role == "assistant":
        return *_split(messages, "messages"), None, ""
    return messages, None, None, ""


def _split(messages: tuple[Message, ...], key: str) -> tuple[tuple[Message, ...], str]:
    if messages[-1].role != "assistant" or len(messages) < 2:
        raise RowError(f"'{key}' must end with an assistant message, after at least one other")
    return messages[:-1], messages[-1].content


def _single_response(row: Mapping[str, Any], key: str) -> str:
    messages = _message_list(row, key)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise RowError(f"'{key}' must be one assistant message, because the row has a 'prompt'")
    return messages[0].content


def _message_list(row: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise RowError(_wrong(row, key, "a list of messages"))
    messages = []
    for position, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise RowError(f"'{key}'[{position}] is {_kind(entry)}, not an object with role and content")
        role = _ROLES.get(str(entry.get("role")).lower())
        if role is None:
            raise RowError(f"'{key}'[{position}] has the role {entry.get('role')!r}, not system, user or assistant")
        messages.append(Message(role, _string(entry, "content", f"'{key}'[{position}].content").strip()))
    return tuple(messages)


# --------------------------------------------------------------------------------------------------------------- fields
def _string(row: Mapping[str, Any], key: str, name: str = "") -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError(_wrong(row, key, "a string", name))
    if "\0" in value:
        raise RowError(f"{name or repr(key)} holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(f"{name or repr(key)} holds half of a surrogate pair, which is no character")
    return value


def _optional(row: Mapping[str, Any], key: str) -> str | None:
    return _string(row, key) if row.get(key) is not None else None


def _first(row: Mapping[str, Any], *keys: str) -> str | None:
    return next((text for key in keys if (text := _optional(row, key)) is not None), None)


def _wrong(row: Mapping[str, Any], key: str, wanted: str, name: str = "") -> str:
    if key not in row:
        return f"there is no {name or repr(key)}; the row has {', '.join(map(str, row)) or 'no fields'}"
    return f"{name or repr(key)} is {_kind(row[key])}, not {wanted}"


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    if isinstance(value, (list, dict)) and not value:
        return "empty"
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


_PARSERS = {"hh": _hh, "tldr": _tldr, "pairs": _pairs, "messages": _messages}
