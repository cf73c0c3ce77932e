"""Row formats: one row of a file -> one `Example`, whatever the publisher called the fields.

hh        chosen, rejected: dialogues, each one string of "\\n\\nHuman:" and "\\n\\nAssistant:" turns
          (Anthropic/hh-rlhf)
tldr      info, summaries, choice (openai/summarize_from_feedback, comparisons); or subreddit, title, post, summary
          (the filtered TL;DR posts); or such a post as prompt with label, completion, or chosen and rejected
          (CarperAI/openai_summarize_tldr, trl-lib/tldr, CarperAI/openai_summarize_comparisons); or article, highlights
          (cnn_dailymail), written as the articles of the comparisons are
safe_rlhf prompt, response_0, response_1, better_response_id, safer_response_id (PKU-Alignment/PKU-SafeRLHF): the prompt
          is a user's message, and of a pair the better response is the safer one too
pairs     prompt and any of chosen, rejected, response, completion, all strings
messages  messages, or chosen and rejected, or prompt with completion or with both: lists of {role, content}

`auto` decides by the fields of a source's first row. A field that a use needs and the row lacks is a `RowError`;
a row in order that cannot be used (the two sides answer different prompts) is `LeftOut`: skipped and counted. Null in a
field that the use does not need is no value. `Fields` knows afterwards which columns no format has read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from gipo_mc.data.fields import Fields, LeftOut, RowError, first, kind, optional, says, string, wrong
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


_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
#: Fields of a message that make it another thing than its text.
_CALLS = ("tool_calls", "function_call", "tool_call_id")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_POST = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
_ARTICLE = "Article:\n\n{article}\n\nTL;DR:"
_TLDR = "TL;DR:"
#: Responses that a use may need.
BOTH = ("chosen", "rejected")


def detect(row: Mapping[str, Any]) -> str:
    """The format of a row by its fields, those that are null only where the others say nothing. Raises RowError."""
    found = _detect({key: value for key, value in row.items() if value is not None}) or _detect(row)
    if not found:
        raise RowError(
            f"the fields {', '.join(sorted(map(str, row))) or '(none)'} are of no known format: set data.format to one "
            "of hh (chosen, rejected), tldr, pairs (prompt, chosen, rejected) or messages, or rename the fields"
        )
    return found


def _detect(row: Mapping[str, Any]) -> str | None:
    keys = row.keys()
    if {"info", "summaries", "choice"} <= keys or {"post", "summary"} <= keys or {"article", "highlights"} <= keys:
        return "tldr"
    if {"prompt", "response_0", "response_1"} <= keys:
        return "safe_rlhf"
    texts = [row[key] for key in ("messages", "prompt", "chosen", "rejected", "completion") if key in keys]
    if any(isinstance(text, list) for text in texts):
        return "messages"
    if "prompt" in keys:
        return "tldr" if str(row["prompt"]).startswith("SUBREDDIT:") else "pairs"
    return "hh" if {"chosen", "rejected"} <= keys else None


def parse(row: Mapping[str, Any], format_name: str, needs: Collection[str] = BOTH) -> Example:
    """The example of a row in a format. Raises RowError and LeftOut.

    needs: the responses that the use needs ("chosen", "rejected"): there null is an error, elsewhere no value.
    """
    fields = row if isinstance(row, Fields) else Fields(row)
    domain = fields.get("domain")
    if domain is not None and not isinstance(domain, str):
        raise RowError(f"'domain' is {kind(domain)}, not a string")
    prompt, chosen, rejected, own_domain = _PARSERS[format_name](fields, needs)
    # Rows of one response with a verdict on it (KTO): of a bad one there is nothing to imitate.
    is_verdict = format_name in ("pairs", "messages") and rejected is None and isinstance(fields.peek("label"), bool)
    if is_verdict and not fields["label"] and "chosen" in needs:
        raise LeftOut("responses that their label rejects")
    system = (optional(fields, "system") or "").strip()
    conversation = _conversation(fields)
    if system and not isinstance(prompt, str):
        prompt, system = _with_system(system, prompt), ""
    return Example(prompt, chosen, rejected, domain or own_domain, system, conversation)


Parsed = tuple["str | tuple[Message, ...]", "str | None", "str | None", str]
Dialogue = tuple[tuple[Message, ...], str]  # the messages before the last turn, and that turn


def _conversation(row: Fields) -> str:
    """What a row names its dialogue. Some files keep the dialogue itself under such a name: that is no name."""
    for key in ("conversation", "conversation_id"):
        if isinstance(row.peek(key), str | int) and not isinstance(row.peek(key), bool):
            return str(row[key])
    return ""


def _with_system(system: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[0].role != "system":
        return (Message("system", system), *messages)
    if messages[0].content != system:
        raise RowError("the row has a 'system' text and a system message that says something else: keep one of them")
    return messages


def _sides(row: Fields, needs: Collection[str], read: Callable[[Fields, str], Dialogue]) -> Parsed:
    """Two dialogues that differ in their last turn, or one of them. A null that nothing needs is no dialogue."""
    found = {key: read(row, key) for key in BOTH if _wanted(row, key, needs)}
    prompt, _ = next(iter(found.values()), None) or read(row, "chosen")  # read says what is wrong
    if any(other != prompt for other, _ in found.values()):
        raise LeftOut("pairs of different prompts")
    chosen, rejected = (found[key][1] if key in found else None for key in BOTH)
    return prompt, chosen, rejected, ""


def _wanted(row: Fields, key: str, needs: Collection[str]) -> bool:
    return row.has(key) or (key in row and key in needs)


# ------------------------------------------------------------------------------------------------------------------- hh
def _hh(row: Fields, needs: Collection[str]) -> Parsed:
    return _sides(row, needs, _dialogue)


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


# ---------------------------------------------------------------------------------------------------------------- tl;dr
def _tldr(row: Fields, needs: Collection[str]) -> Parsed:
    if row.has("info") or row.has("summaries"):
        return _comparison(row, needs)
    if row.has("post"):
        prompt = _POST.format(**{key: string(row, key).strip() for key in ("subreddit", "title", "post")})
        return prompt, optional(row, "summary"), None, "tldr"
    if row.has("article"):
        return _ARTICLE.format(article=string(row, "article").strip()), optional(row, "highlights"), None, "cnndm"
    prompt = string(row, "prompt").rstrip()
    chosen = first(row, "chosen", "completion", "response")
    if chosen is None and isinstance(row.peek("label"), str):
        chosen = string(row, "label")
    rejected = optional(row, "rejected")
    if not prompt.endswith(_TLDR):
        # CarperAI/openai_summarize_comparisons writes the "TL;DR:" in front of each response.
        prompt += f"\n\n{_TLDR}"
        chosen, rejected = (text and text.strip().removeprefix(_TLDR) for text in (chosen, rejected))
    return prompt, chosen, rejected, "tldr"


def _comparison(row: Fields, needs: Collection[str]) -> Parsed:
    """openai/summarize_from_feedback: Reddit posts, and CNN/DailyMail articles in some of the batches."""
    info, summaries, choice = row.get("info"), row.get("summaries"), row.get("choice")
    if not isinstance(info, Mapping):
        raise RowError(f"'info' is {kind(info)}, not an object with the post")
    chosen = rejected = None
    if needs or (summaries is not None and choice is not None):
        if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, Mapping) for s in summaries):
            raise RowError(f"'summaries' is {kind(summaries)}, not a list of two objects with a 'text'")
        if choice not in (0, 1) or isinstance(choice, bool):
            raise RowError(f"'choice' is {choice!r}, not 0 or 1")
        sides = zip(BOTH, (summaries[choice], summaries[1 - choice]), strict=True)
        chosen, rejected = (string(side, "text") if key in needs else optional(side, "text") for key, side in sides)
    if info.get("post") is not None:
        fields = {key: (optional(info, key) or "").strip() for key in ("subreddit", "title")}
        prompt, domain = _POST.format(post=string(info, "post").strip(), **fields), "tldr"
    else:
        prompt, domain = _ARTICLE.format(article=string(info, "article").strip()), "cnndm"
    return prompt, chosen, rejected, domain


# ---------------------------------------------------------------------------------------------------------------- pairs
def _pairs(row: Fields, needs: Collection[str]) -> Parsed:
    return string(row, "prompt"), first(row, "chosen", "response", "completion"), optional(row, "rejected"), ""


# ------------------------------------------------------------------------------------------------------------ safe_rlhf
def _safe_rlhf(row: Fields, needs: Collection[str]) -> Parsed:
    """A question of PKU-SafeRLHF, and of its pairs those that both of its labels order alike."""
    prompt = (Message("user", string(row, "prompt").strip()),)
    if not needs:
        return prompt, None, None, ""
    better, safer = (_response_id(row, key) for key in ("better_response_id", "safer_response_id"))
    if better != safer:
        raise LeftOut("pairs whose better response is not the safer one")
    return prompt, string(row, f"response_{better}"), string(row, f"response_{1 - better}"), ""


def _response_id(row: Fields, key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value not in (0, 1):
        raise RowError(f"'{key}' is {value!r}, not 0 or 1")
    return value


# ------------------------------------------------------------------------------------------------------------- messages
def _messages(row: Fields, needs: Collection[str]) -> Parsed:
    if isinstance(row.peek("prompt"), list):
        prompt = _message_list(row, "prompt")
        key = next((key for key in ("chosen", "completion") if row.has(key)), "chosen")
        chosen = _single_response(row, key) if _wanted(row, key, needs) else None
        rejected = _single_response(row, "rejected") if _wanted(row, "rejected", needs) else None
        if prompt[-1].role == "assistant":
            raise RowError("'prompt' ends with an assistant message: it must end with the one to answer")
        return prompt, chosen, rejected, ""
    if row.has("chosen") or ("chosen" in row and not row.has("messages")):
        return _sides(row, needs, lambda row, key: _split(_message_list(row, key), key))
    messages = _message_list(row, "messages")
    if messages[-1].role == "assistant":
        return *_split(messages, "messages"), None, ""
    return messages, None, None, ""


def _split(messages: tuple[Message, ...], key: str) -> Dialogue:
    if messages[-1].role != "assistant" or len(messages) < 2:
        raise RowError(f"'{key}' must end with an assistant message, after at least one other")
    return messages[:-1], messages[-1].content


def _single_response(row: Fields, key: str) -> str:
    messages = _message_list(row, key)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise RowError(f"'{key}' must be one assistant message, because the row has a 'prompt'")
    return messages[0].content


def _message_list(row: Fields, key: str) -> tuple[Message, ...]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise RowError(wrong(row, key, "a list of messages"))
    messages = []
    for position, entry in enumerate(value):
        name = f"'{key}'[{position}]"
        if not isinstance(entry, Mapping):
            raise RowError(f"{name} is {kind(entry)}, not an object with role and content")
        role = _ROLES.get(str(entry.get("role")).lower())
        if role is None:
            raise RowError(f"{name} has the role {entry.get('role')!r}, not system, user or assistant")
        if call := next((field for field in _CALLS if says(entry.get(field))), None):
            raise RowError(f"{name} has {call}, and calls of tools are not text to learn: leave the dialogue out")
        messages.append(Message(role, string(entry, "content", f"{name}.content").strip()))
        for part, held in entry.items():
            if part not in ("role", "content") and says(held):
                row.ignore(f"{key}.{part}")
    return tuple(messages)


_PARSERS = {"hh": _hh, "tldr": _tldr, "pairs": _pairs, "safe_rlhf": _safe_rlhf, "messages": _messages}
