"""What a reward server is sent and what it answers, and what its answer means. docs/rewards.md shows both.

    POST <address>    {"version": 1, "samples": [{"prompt": ..., "response": ..., "domain": ..., ...}, ...]}
    200               {"rewards": [0.5, null, -1.25]}

A number for each sample, in the order of the samples; null where there is none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gipo_mc.config import hide
from gipo_mc.rl.reward_sources.samples import numbers
from gipo_mc.run.servers.retry_after import retry_after
from gipo_mc.types import Sample

VERSION = 1
#: Characters of a server's text in our messages.
_QUOTED = 200


@dataclass(frozen=True)
class Reply:
    """What came of one request.

    rewards: of its samples, NaN for what has none; None where there is no answer. problem: what was wrong, a clause
        whose subject is the server.
    passing: would the same request be answered later? pause: seconds that the server asks to wait, None where it names
    none.
    """

    rewards: list[float] | None = None
    problem: str = ""
    passing: bool = False
    pause: float | None = None


def request_body(samples: Sequence[Sample]) -> bytes:
    """The samples as JSON, UTF-8. What JSON has no name for (a date, bytes) is written as text; NaN as null."""
    rows = [
        {
            "prompt": sample.prompt,
            "response": sample.response,
            "domain": sample.domain,
            "messages": [{"role": message.role, "content": message.content} for message in sample.messages],
            "columns": sample.columns,
            "response_ids": sample.response_ids,
            "truncated": sample.truncated,
            "row": sample.row,
        }
        for sample in samples
    ]
    text = json.dumps(_plain({"version": VERSION, "samples": rows}), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # half of a surrogate pair has no UTF-8


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def read_reply(status: int, headers: Mapping[str, str], body: bytes, count: int) -> Reply:
    """What an answer to a request of `count` samples means. headers: a mapping that ignores case."""
    if status == 200:
        return _read_rewards(body, count)
    said = " ".join(hide(body[: 4 * _QUOTED].decode("utf-8", "replace")).split())[:_QUOTED]
    if 300 <= status < 400:
        said = f"it points to {hide(headers.get('location', ''))[:_QUOTED]!r}, and redirects are not followed"
    passing = status in (408, 425, 429) or status >= 500
    return Reply(None, f"answered {status}{f': {said}' if said else ''}", passing, retry_after(headers))


def _read_rewards(body: bytes, count: int) -> Reply:
    """A server that is being replaced may answer 200 with a page for a moment: nonsense as a whole is asked for again,
    a sample without a reward is not."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("rewards"), list):
        quoted = hide(body[: 4 * _QUOTED].decode("utf-8", "replace"))[:_QUOTED]
        return Reply(None, f"answered 200 with something that is no rewards: {quoted!r}", passing=True)
    rewards = [math.nan if value is None else value for value in found["rewards"]]
    numbers_found, wrong = numbers(rewards, count, "it", skip=True)
    return Reply(numbers_found, f"answered, but {str(wrong).rstrip('.')}" if wrong else "")
