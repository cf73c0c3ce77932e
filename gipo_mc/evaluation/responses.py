"""Responses of one policy, a line each as gipo-mc generate --out writes them: read, checked, and found by prompt."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from gipo_mc.errors import DataError
from gipo_mc.run.jsonl import encode, read_file, write_atomically

#: A row without these cannot be compared; the others say where it came from.
NEEDED = ("prompt", "response", "tokens")
_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
_TURN = re.compile(r"(?:^|\n\n)(System|Human|Assistant):")
_ANSWER = "\n\nAssistant:"


@dataclass(frozen=True)
class Response:
    """One response as text.

    prompt: as the policy read it. tokens: length of the response in the policy's tokens, EOS counted. truncated: it
    reached rollout.max_new_tokens. messages: the dialogue, [{"role", "content"}], where a chat template wrote the
    prompt. row: where the prompt was read. conversation: pairs of one conversation are not independent. model: "name
    [checkpoint, hash of the weights]". sampling: how it was drawn. group: the class of the run's own classifier, None
    without one.
    """

    prompt: str
    response: str
    domain: str
    tokens: int
    truncated: bool
    messages: Sequence[Mapping[str, str]] = ()
    row: str = ""
    conversation: str = ""
    model: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    group: int | None = None

    @cached_property
    def dialogue(self) -> str:
        """The prompt for a reader: turns as HH-RLHF writes them where it is a dialogue, else the text."""
        if not self.messages:
            return self.prompt
        return "".join(f"\n\n{_NAMES[m['role']]}: {m['content']}" for m in self.messages) + _ANSWER

    @property
    def text(self) -> str:
        """The response as it is judged: up to the stop string that ended it, which is none of its words."""
        stops = self.sampling.get("stop") if not self.truncated else None
        found = [at for stop in stops or () if isinstance(stop, str) and stop and (at := self.response.find(stop)) >= 0]
        return self.response[: min(found, default=None)]

    @cached_property
    def prompt_hash(self) -> str:
        """16 digits, the same for every rendering of a dialogue: with a chat template, as plain turns, by another
        program. What two files are matched by."""
        return text_hash(*(part for turn in turns(self.dialogue) for part in turn))


def text_hash(*parts: object) -> str:
    """16 hexadecimal digits that differ where any part does."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]


def turns(prompt: str) -> list[tuple[str, str]]:
    """(role, content) of a prompt's turns, stripped; a text that is no dialogue is one user's turn."""
    text = prompt.strip()
    if not prompt.startswith("\n\n") or not _TURN.match(text):
        return [("user", text)]
    parts = _TURN.split(text)[1:]
    roles = {name: role for role, name in _NAMES.items()}
    found = [(roles[name], content.strip()) for name, content in zip(parts[::2], parts[1::2], strict=True)]
    return found[:-1] if found[-1] == ("assistant", "") and len(found) > 1 else found


def conversation_of(prompt: str, named: str = "") -> str:
    """The name that the data give a dialogue, else a hash of its first user's turn."""
    first = next((content for role, content in turns(prompt) if role == "user"), prompt)
    return named or text_hash(first)


def is_count(value: object) -> bool:
    """Is this a number of tokens, or of a group?"""
    return type(value) is int and 0 <= value < 2**31


def is_response(line: str) -> bool:
    """Is this a response as a line of JSON?"""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    known = {entry.name for entry in fields(Response)}
    return isinstance(row, dict) and {*NEEDED, "domain", "truncated"} <= row.keys() <= known


def write_responses(path: Path, responses: Iterable[Response]) -> None:
    """Make the file these responses. Raises StorageError."""
    write_atomically(path, "".join(encode(asdict(response)) + "\n" for response in responses))


def read_responses(path: Path) -> dict[str, Response]:
    """The responses of a file by `prompt_hash`, in its order. Raises DataError, "file:line: reason"."""
    try:
        lines = read_file(path).decode("utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start + 1}): save it as UTF-8.") from error
    found: dict[str, Response] = {}
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            response = _response(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not a response: {error}. gipo-mc generate --out writes such files; a line needs "
                f"{', '.join(NEEDED)}."
            ) from error
        key = response.prompt_hash
        if key in found:
            raise DataError(
                f"{path}:{number}: line {line_of[key]} has a response to the same prompt ({_short(response)}): which "
                "of them is meant? Keep one; further samples go into a file of their own."
            )
        found[key], line_of[key] = response, number
    if not found:
        raise DataError(f"{path} holds no responses.")
    return found


def check_aligned(ours: Mapping[str, Response], theirs: Mapping[str, Response], names: tuple[str, str]) -> None:
    """Raises DataError unless both have a response to every prompt of the other. names: of the two files."""
    for mine, other, (has, lacks) in ((ours, theirs, names), (theirs, ours, names[::-1])):
        missing = [response for key, response in mine.items() if key not in other]
        if missing:
            raise DataError(
                f"{lacks} has no response to {len(missing)} of the {len(mine)} prompts of {has}, for example to "
                f"{_short(missing[0])}. Pairs are made of the same prompts and none is left out in silence: generate "
                "both from the same rows (data.evaluation, eval.prompts, data.prompt_length)."
            )


def chosen_prompts(keys: Iterable[str], count: int, seed: int) -> set[str]:
    """`count` of the prompts (0: all), drawn by seed. A larger count holds every smaller one, so that more pairs can
    be judged later without asking again."""
    ordered = sorted(keys, key=lambda key: text_hash("prompts", seed, key))
    return set(ordered[: count or None])


def _short(response: Response) -> str:
    text = response.dialogue.strip()
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def _response(row: Any) -> Response:
    """Raises ValueError with the reason."""
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is expected, this is a {type(row).__name__}")
    if missing := [name for name in NEEDED if name not in row]:
        raise ValueError(f"there is no {', '.join(missing)}")
    row = {"domain": "", "truncated": False} | row
    kinds = {"prompt": str, "response": str, "domain": str, "row": str, "conversation": str, "model": str}
    for name, kind in {**kinds, "truncated": bool, "sampling": dict, "messages": list}.items():
        if not isinstance(row.get(name, kind()), kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    if not is_count(row["tokens"]):
        raise ValueError("tokens is no count")
    if row.get("group") is not None and not is_count(row["group"]):
        raise ValueError("group is neither null nor the number of one")
    for message in row.get("messages", ()):
        if (
            not isinstance(message, dict)
            or message.get("role") not in _NAMES
            or type(message.get("content")) is not str
        ):
            raise ValueError("messages are objects with role (system, user, assistant) and content")
    known = {entry.name for entry in fields(Response)}
    found = Response(**{name: value for name, value in row.items() if name in known})
    if not found.dialogue.strip():
        raise ValueError("the prompt is empty")
    return found
