"""When a response ends before EOS: stop strings, found in the decoded text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

#: Does the response end here? Called with the ids generated so far; must be a pure function of them.
StopCondition = Callable[[Sequence[int]], bool]


def stop_on_strings(tokenizer: Any, strings: Sequence[str], lead: Sequence[int] = ()) -> StopCondition | None:
    """Stop as soon as the decoded response contains one of `strings`; None when there are none.

    lead: ids before the response that are no part of it, for tokenizers that take the first space from a text.
    The tokens that complete the string stay part of the response: the policy chose them. Special tokens are decoded
    too, so the text of one (an end-of-turn marker, say) may be used as a stop.
    """
    wanted = [string for string in strings if string]
    if not wanted:
        return None
    # Only the newest token can complete a string. A token holds at least one byte of it; the margin is for the first
    # token of the window, which may lose a leading space or be cut out of the middle of a character.
    window = max(len(string.encode("utf-8")) for string in wanted) + 8

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)  # type: ignore[no-any-return]

    before = len(decode(lead)) if lead else 0

    def is_stopped(response_ids: Sequence[int]) -> bool:
        text = decode([*lead, *response_ids[-window:]])[before:]
        return any(string in text for string in wanted)

    return is_stopped
