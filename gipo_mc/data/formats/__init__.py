"""Row formats: one row of a file -> one `Example`, whatever the publisher called the fields. One file each.

tldr        info with summaries, choice (openai/summarize_from_feedback), the filtered TL;DR posts, cnn_dailymail
safe_rlhf   prompt, response_0, response_1, better_response_id (PKU-Alignment/PKU-SafeRLHF, and its questions)
helpsteer   the three generations of nvidia/HelpSteer
ultrafeedback  openbmb/UltraFeedback, and its binarized versions
sharegpt    conversations of {from, value}
alpaca      instruction, input, output; databricks-dolly
messages    messages, or chosen and rejected, or prompt with completion or with both: lists of {role, content}; beside a
            prompt the responses may be texts
pairs       prompt and any of chosen, rejected, response, completion, all strings
hh          chosen, rejected: dialogues, each one string (Anthropic/hh-rlhf)

`auto` decides by the fields of a source's first row. A field that a use needs and the row lacks is a `RowError`;
a row in order that cannot be used (the two sides answer different prompts) is `LeftOut`: skipped and counted. Null in a
field that the use does not need is no value. `Fields` knows afterwards which columns no format has read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, LeftOut, RowError, UnknownFormat, kind, names_of, optional, other_names
from gipo_mc.data.formats import alpaca, helpsteer, hh, messages, pairs, safe_rlhf, sharegpt, tldr, ultrafeedback
from gipo_mc.data.formats.example import BOTH, Example
from gipo_mc.types import Message

__all__ = ["BOTH", "FORMATS", "Example", "detect", "parse"]

#: By name, in the order in which detection asks: whose fields nobody else has, before the more general ones.
FORMATS = {
    "tldr": tldr,
    "safe_rlhf": safe_rlhf,
    "helpsteer": helpsteer,
    "ultrafeedback": ultrafeedback,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "messages": messages,
    "pairs": pairs,
    "hh": hh,
}


def detect(row: Mapping[str, Any], needs: Collection[str] = ()) -> str:
    """The format of a row by its fields, those that are null only where the others say nothing. Raises UnknownFormat.

    needs: the responses that the use needs, for its message.
    """
    found = _detect({key: value for key, value in row.items() if value is not None}) or _detect(row)
    if not found:
        which = other_names(row, [field for field in ("prompt", *needs) if field not in row])
        which = which or (
            "say which are the prompt and the responses ('data.columns={prompt: NAME, chosen: NAME, rejected: NAME}')"
        )
        raise UnknownFormat(
            f"the fields {', '.join(sorted(names_of(row))) or '(none)'} are of no known format: {which}, set "
            f"data.format to one of {', '.join(FORMATS)}, or write a format (docs/recipes/data_format.md)"
        )
    if found == "hh" and not hh.is_likely(row) and (which := other_names(row, ["prompt"])):
        raise UnknownFormat(
            f"there is no column 'prompt', and 'chosen' and 'rejected' are no HH dialogues, which would hold it; the "
            f"row has {', '.join(names_of(row))}: {which}"
        )
    return found


def _detect(row: Mapping[str, Any]) -> str | None:
    return next((name for name, module in FORMATS.items() if module.matches(row)), None)


def parse(row: Mapping[str, Any], format_name: str, needs: Collection[str] = BOTH) -> Example:
    """The example of a row in a format. Raises RowError and LeftOut.

    needs: the responses that the use needs ("chosen", "rejected"): there null is an error, elsewhere no value.
    """
    fields = row if isinstance(row, Fields) else Fields(row)
    domain = fields.get("domain")
    if domain is not None and not isinstance(domain, str):
        raise RowError(f"'domain' is {kind(domain)}, not a string")
    prompt, chosen, rejected, own_domain = FORMATS[format_name].parse(fields, needs)
    # Rows of one response with a verdict on it (KTO): of a bad one there is nothing to imitate.
    can_have_verdicts = format_name in ("pairs", "messages", "sharegpt", "alpaca")
    is_verdict = can_have_verdicts and rejected is None and isinstance(fields.peek("label"), bool)
    if is_verdict and not fields["label"] and "chosen" in needs:
        raise LeftOut("responses that their label rejects")
    system = (optional(fields, "system") or "").strip()
    conversation = _conversation(fields)
    if system and not isinstance(prompt, str):
        prompt, system = _with_system(system, prompt), ""
    return Example(prompt, chosen, rejected, domain or own_domain, system, conversation)


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
