"""What a judge's server is asked and what it answers, apart from how it is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gipo_mc.errors import GipoError


class JudgeStopped(GipoError):
    """Asking on is useless: the key is refused, the quota is used up, or the server does not answer any more."""

    exit_code = 8


@dataclass(frozen=True)
class Answer:
    """One answer of a server.

    text: what the model wrote, None where there is nothing to read; `problem` then says why, a sentence.
    finish_reason, model: as returned, "" where the server says nothing.
    usage: {"prompt_tokens": n, "completion_tokens": n}, None where the server does not count.
    adapted: changes that the server forced on the request, for example "max_completion_tokens for max_tokens".
    """

    text: str | None
    problem: str = ""
    finish_reason: str = ""
    model: str = ""
    usage: Mapping[str, int] | None = None
    adapted: tuple[str, ...] = ()


class ChatClient(Protocol):
    """A server that answers chat messages. Called from several threads at once."""

    server: str  # what a verdict depends on: address without user, password, query; never a key

    def ask(self, messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any]) -> Answer:
        """One answer. settings: "model", "temperature", "max_tokens", "seed"... as the request carries them. Waits and
        asks again where the server is busy. Raises JudgeStopped."""

    def stop(self) -> None:
        """Send no further request: whoever waits to ask raises JudgeStopped. What is under way is not disturbed."""
