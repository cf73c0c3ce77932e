"""What a server's reply to one request means: an answer, busy, failed, refused, or that asking on is useless.

The status alone does not tell. Servers that speak this protocol answer 200 with an error or a page in the body, 429 for
a quota that no waiting brings back, and 400 for a parameter that another spelling would satisfy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gipo_mc.config import hide
from gipo_mc.evaluation.answers import Answer
from gipo_mc.run.servers.retry_after import retry_after

#: "busy": the same request later. "failed": the server's fault; the same request again. "gone": no server, perhaps for
#: a moment only. "refused": this request's fault. "useless": nothing that is asked will be answered.
Kind = Literal["answered", "busy", "failed", "gone", "refused", "useless"]
#: Characters of a server's text in our messages.
_QUOTED = 300
#: Codes that come with 429 and mean money, not speed.
_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_credits"}
_REFUSING = re.compile(
    "unsupported|not support|unexpected|extra|unknown|unrecogni|not permitted|not allowed|only the default",
    re.IGNORECASE,
)
#: Servers quote a key that they refuse, with stars in its middle. What is left of it is nobody's business either.
_STARRED = re.compile(r"[^\s'\"`]*\*{3,}[^\s'\"`]*")


@dataclass(frozen=True)
class Reply:
    """What came of one request.

    problem: what was wrong, a clause without its subject, which is the server. answer: where there is one.
    pause: seconds that the server asks to wait, None where it names none. refused: keys of the request that it names.
    """

    kind: Kind
    problem: str = ""
    answer: Answer | None = None
    pause: float | None = None
    refused: tuple[str, ...] = ()


def read_reply(status: int, headers: Mapping[str, str], body: bytes, sent: Iterable[str]) -> Reply:
    """What a reply means. headers: names in lower case, or a mapping that ignores case. sent: keys of the request."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not 200 <= status < 300:
        return _by_status(status, headers, found, body, sent)
    if not isinstance(found, dict):
        return Reply("failed", f"answered 200 with something that is no chat completion: {_quote(_text(found, body))}")
    if found.get("error") or found.get("object") == "error":
        return _by_status(_status_inside(found), headers, found, body, sent, " in the body of a 200")
    if not isinstance(found.get("choices"), list):
        return Reply("failed", f"answered 200 without `choices`: {_quote(_text(found, body))}")
    return Reply("answered", answer=_answer(found))


def _by_status(
    status: int, headers: Mapping[str, str], found: Any, body: bytes, sent: Iterable[str], where: str = ""
) -> Reply:
    said = _quote(_text(found, body))
    problem = f"answered {status}{where}: {said}" if said else f"answered {status}{where}"
    pause = retry_after(headers)
    if status in (401, 402) or _codes(found) & _NO_MONEY:
        return Reply("useless", problem)
    if status == 429 or (status == 503 and pause is not None):
        return Reply("busy", problem, pause=pause)
    if status in (408, 409, 425) or status >= 500:
        return Reply("failed", problem, pause=pause)
    if 300 <= status < 400:
        there = hide(headers.get("location", "another address")).split("?")[0][:_QUOTED]
        return Reply("useless", f"answered {status} and sends on to {there}, which base_url has to name itself")
    if status in (404, 405):
        return Reply("useless", f"{problem}; base_url usually ends with /v1, and `model` is a name it knows")
    return Reply("refused", problem, refused=_refused(found, body, sent))


def _status_inside(found: dict[str, Any]) -> int:
    """The status that an error in the body of a 200 has there; 500 where it has none."""
    error = found.get("error")
    for holder in (error if isinstance(error, dict) else {}, found):
        for key in ("code", "status", "status_code"):
            value = holder.get(key)
            if (isinstance(value, int) or (isinstance(value, str) and value.isdecimal())) and 400 <= int(value) < 600:
                return int(value)
    return 500


def _codes(found: Any) -> set[str]:
    error = found.get("error") if isinstance(found, dict) else None
    return {str(error.get(key)) for key in ("code", "type")} if isinstance(error, dict) else set()


def _refused(found: Any, body: bytes, sent: Iterable[str]) -> tuple[str, ...]:
    """Keys of the request that an error names as what it refuses."""
    error = found.get("error") if isinstance(found, dict) else None
    named = error.get("param") if isinstance(error, dict) else None
    text = body.decode("utf-8", "replace")
    if not _REFUSING.search(text):
        return ()
    keys = [key for key in sent if key not in ("model", "messages")]
    if named in keys:
        return (str(named),)
    return tuple(key for key in keys if re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", text))


def _text(found: Any, body: bytes) -> str:
    """The sentence in an error, wherever this server keeps it."""
    if isinstance(found, dict):
        if isinstance(found.get("error"), str):
            return found["error"]
        for holder in (found.get("error"), found):
            said = (holder.get("message") or holder.get("detail")) if isinstance(holder, dict) else None
            if said:
                return said if isinstance(said, str) else json.dumps(said)
    return body.decode("utf-8", "replace")


def _quote(text: str) -> str:
    """One line of a server's text. Secrets are hidden first: half of one would not be found."""
    line = _STARRED.sub("***", " ".join(hide(text).split())[: 4 * _QUOTED])
    return line.rstrip(".") if len(line) <= _QUOTED else line[:_QUOTED] + ".."


def _answer(found: dict[str, Any]) -> Answer:
    choice = found["choices"][0] if found["choices"] else None
    message = choice.get("message") if isinstance(choice, dict) else None
    reason = _string(choice.get("finish_reason")) if isinstance(choice, dict) else ""
    counts = found["usage"] if isinstance(found.get("usage"), dict) else {}
    usage = {key: counts[key] for key in ("prompt_tokens", "completion_tokens") if type(counts.get(key)) is int}
    text = _content(message.get("content")) if isinstance(message, dict) else None
    problem = ""
    if not (text and text.strip()):
        text, problem = None, _why_nothing(message, reason)
    return Answer(text, problem, reason, _string(found.get("model")), usage or None)


def _content(content: Any) -> str | None:
    """The text of a message; of a list of parts, its text parts, without those that hold reasoning."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(text for text in texts if isinstance(text, str))
    return _string(content) if isinstance(content, str) else None


def _why_nothing(message: Any, reason: str) -> str:
    if not isinstance(message, dict):
        return "The answer holds no message (`choices` is empty, or no choice)."
    reasoned = any(message.get(key) for key in ("reasoning", "reasoning_content", "thinking"))
    if reason == "length":
        spent = "its reasoning used them up" if reasoned else "nothing was written within them"
        return f"The answer was cut at max_tokens and holds no text: {spent}. Raise max_tokens."
    if message.get("refusal"):
        return f"The model refused: {_quote(_string(message['refusal']))}"
    if reason == "content_filter":
        return "The server's content filter took the answer away."
    if reasoned:
        return "The answer holds reasoning and no text."
    return f"The answer holds no text (finish_reason {reason or 'not given'})."


def _string(value: Any) -> str:
    """A text that has a UTF-8: halves of surrogate pairs, which JSON may hold, become the replacement character."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else ""
