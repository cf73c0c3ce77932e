"""A judge's server that speaks OpenAI's chat completions, reached with the `openai` client.

The client's own retries are off: they ask again where a quota is used up, and never where the server names a pause of
more than two minutes. Here a pause is kept by all threads together; a request that fails is asked again a bounded
number of times; one that cannot be answered becomes an answer without text, so that one bad request does not end a
run; and where nothing is answered any more, `JudgeStopped` says why.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn
from urllib.parse import urlsplit

from gipo_mc.config import hide
from gipo_mc.config.environment import hide_value
from gipo_mc.errors import ConfigError
from gipo_mc.evaluation.answers import Answer, JudgeStopped
from gipo_mc.evaluation.judge_config import OpenAIJudgeConfig
from gipo_mc.evaluation.judges.server_replies import Reply, read_reply
from gipo_mc.run.arguments import say_warning

#: Seconds before the second try of a request, doubled for each further one, and their limit.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Seconds of a pause from which on it is said.
_SAID_FROM = 10.0
#: Requests given up one after the other, none answered in between, that end a run. Those that the server refuses do not
#: count: a content filter may refuse any number of harmful texts, and the loop has a limit of its own.
GIVEN_UP = 3
#: Bytes of a reply that are read.
_LARGEST = 32 * 2**20
#: What is tried in place of a key that the server refuses; other keys are left out.
_SPELLINGS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_KEEPS_GOING = "What was answered is kept: the same command asks only for the rest."


@dataclass
class _Request:
    """One request under way.

    changes: key that was given -> key that is sent for it, "" where it is left out. tries: how often it failed, or
    came too early while no other request was answered. busy: how often it came too early.
    """

    messages: list[dict[str, str]]
    settings: dict[str, Any]
    changes: dict[str, str]
    tries: int = 0
    busy: int = 0
    answered_before: int = 0

    def body(self) -> dict[str, Any]:
        names = {key: self.changes.get(key, key) for key in self.settings}
        return {names[key]: value for key, value in self.settings.items() if names[key]}

    def adapted(self) -> tuple[str, ...]:
        return _in_words({given: sent for given, sent in self.changes.items() if given in self.settings})

    def adapt(self, refused: Sequence[str]) -> bool:
        """Leave out, or spell otherwise, what the server refuses. False where that was tried, or cannot be."""
        new = {given: _SPELLINGS.get(given, "") for given in refused if given in self.settings}
        new = {given: sent for given, sent in new.items() if given not in self.changes}
        self.changes.update(new)
        return bool(new)


@dataclass
class _Shared:
    """What the threads know together; changed under `lock`.

    not_before: monotonic time of the next request. given_up: requests since the last answer that had none.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    why: str = ""
    not_before: float = 0.0
    answered: int = 0
    given_up: int = 0
    changes: dict[str, str] = field(default_factory=dict)


class OpenAIClient:
    """A `ChatClient` (gipo_mc/evaluation/answers.py) for `kind: openai`.

    tell: is given sentences about pauses and adapted requests, from any thread; stderr by default.
    Raises ConfigError where the `openai` package or the key is missing, or the address cannot be used.
    """

    def __init__(self, config: OpenAIJudgeConfig, tell: Callable[[str], None] = say_warning) -> None:
        self.server = _address(config.base_url)
        self._config = config
        self._tell = tell
        self._shared = _Shared()
        self._client = _connect(config)

    def ask(self, messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any]) -> Answer:
        """One answer; see ChatClient. Raises JudgeStopped, in all threads once it was raised in one."""
        clean = [{key: _utf8(text) for key, text in message.items()} for message in messages]
        with self._shared.lock:
            request = _Request(clean, dict(settings), dict(self._shared.changes))
        while True:
            self._wait_for_turn()
            with self._shared.lock:
                request.answered_before = self._shared.answered
            reply = self._send(request)
            if reply.answer:
                return self._take(request, reply.answer)
            if reply.kind == "useless":
                self._stop(f"The judge's server {self.server} {reply.problem}.")
            if reply.kind == "refused" and request.adapt(reply.refused):
                continue
            if reply.kind == "refused":
                return Answer(None, f"The server {reply.problem}.")
            if self._used_up(request, reply):
                return self._give_up(reply)
            self._pause(request, reply)

    def stop(self) -> None:
        """See ChatClient: Ctrl-C need not wait for a pause of two minutes."""
        with self._shared.lock:
            self._shared.why = self._shared.why or "The judge was stopped."
            self._shared.stopping.set()

    def close(self) -> None:
        """Stop, and close the connections."""
        self.stop()
        self._client.close()

    def _wait_for_turn(self) -> None:
        """Until no pause is on. Raises JudgeStopped as soon as another thread found that asking on is useless."""
        while not self._shared.stopping.is_set():
            left = self._shared.not_before - time.monotonic()
            if left <= 0:
                return
            self._shared.stopping.wait(left)
        raise JudgeStopped(self._shared.why)

    def _take(self, request: _Request, answer: Answer) -> Answer:
        with self._shared.lock:
            self._shared.answered += 1
            self._shared.given_up = 0
            new = {given: sent for given, sent in request.changes.items() if given not in self._shared.changes}
            self._shared.changes.update(new)
        if new:
            self._tell(f"{self.server} refuses {', '.join(new)}; from now on: {', '.join(_in_words(new))}.")
        return replace(answer, adapted=request.adapted())

    def _used_up(self, request: _Request, reply: Reply) -> bool:
        """Count a try. A server that is busy with our other requests costs none, as long as it answers those."""
        with self._shared.lock:
            others = self._shared.answered > request.answered_before
        request.busy += reply.kind == "busy"
        request.tries += not (reply.kind == "busy" and others)
        retries = self._config.retries
        return request.tries > retries or request.busy > retries * self._config.workers

    def _give_up(self, reply: Reply) -> Answer:
        with self._shared.lock:
            self._shared.given_up += 1
            last = self._shared.given_up >= GIVEN_UP
        if reply.kind == "gone":
            self._stop(f"The judge's server {self.server} {reply.problem}. Is it running?")
        if last:
            self._stop(
                f"The judge's server {self.server} answered none of the last {GIVEN_UP} requests: it {reply.problem}."
            )
        return Answer(None, f"The server {reply.problem}.")

    def _stop(self, sentence: str) -> NoReturn:
        with self._shared.lock:
            self._shared.why = self._shared.why or f"{sentence} {_KEEPS_GOING}"
            self._shared.stopping.set()
        raise JudgeStopped(self._shared.why)

    def _pause(self, request: _Request, reply: Reply) -> None:
        """Wait as long as the server asks, all threads together; longer and longer by itself where it does not say."""
        longest = self._config.longest_wait_seconds
        if reply.pause is not None and reply.pause > longest:
            self._stop(
                f"The judge's server {self.server} {reply.problem}, and asks to wait {reply.pause:,.0f} seconds: more "
                f"than longest_wait_seconds={longest:g}. Raise that, or start again later."
            )
        pause = reply.pause
        if pause is None:
            tries = max(request.tries, request.busy, 1)
            pause = min(FIRST_PAUSE * 2.0 ** min(tries - 1, 30), LONGEST_PAUSE) * random.uniform(0.75, 1.0)
        if reply.kind != "busy":
            self._shared.stopping.wait(pause)
            return
        with self._shared.lock:
            until = time.monotonic() + pause
            news = until > self._shared.not_before + 1.0
            self._shared.not_before = max(self._shared.not_before, until)
        if news and pause >= _SAID_FROM:
            self._tell(f"{self.server} is busy: waiting {pause:,.0f} seconds, as it asks.")

    def _send(self, request: _Request) -> Reply:
        """One request, and what came of it. Nothing that the client raises goes on: it holds the key."""
        import httpx2
        import openai

        sent = request.body()
        try:
            status, headers, body = self._exchange(request.messages, sent)
        except openai.APIStatusError as error:
            status, headers, body = error.status_code, error.response.headers, error.response.content
        except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError):
            return Reply("failed", f"did not answer within timeout_seconds={self._config.timeout_seconds:g}")
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            said = " ".join(hide(str(cause)).split())[:200] or type(cause).__name__
            if isinstance(cause, httpx2.ConnectError):
                return Reply("gone", f"cannot be reached: {said}")
            return Reply("failed", f"broke off: {said}")
        return read_reply(status, headers, body, sent)

    def _exchange(self, messages: list[dict[str, str]], sent: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. The client's time-out is for each read: a server that sends a byte now and then
        would keep it waiting for ever, so the whole has one here. Raises what openai and httpx2 raise, TimeoutError."""
        end = time.monotonic() + self._config.timeout_seconds
        body = b""
        create = self._client.chat.completions.with_streaming_response.create
        others = {key: value for key, value in sent.items() if key != "model"}
        with create(model=sent.get("model"), messages=messages, extra_body=others) as response:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > end:
                    raise TimeoutError
                if len(body) > _LARGEST:
                    break  # a part is no JSON
            return response.status_code, response.headers, body


def _in_words(changes: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{sent} for {given}" if sent else f"without {given}" for given, sent in changes.items())


def _address(base_url: str) -> str:
    """Scheme, host, port and path: what a verdict depends on. Raises ConfigError for what may hold a secret."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError("base_url is no address: write one like http://localhost:8000/v1.") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "base_url holds a user, a password or a query, which would be written to files: leave them out, and name "
            "the environment variable of the key with key_variable."
        )
    where = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{where}{f':{port}' if port else ''}{parts.path}".rstrip("/")


def _key(variable: str) -> str:
    """The key, hidden from now on in all that is printed or written. Raises ConfigError without quoting it."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"key_variable={variable}: there is no such environment variable, or it is empty. Export it.")
    hide_value(key, variable)
    if not re.fullmatch("[!-~]+", key):
        # Its error would quote the header.
        raise ConfigError(f"key_variable={variable}: it holds a space or a character that no HTTP header can have.")
    return key


def _connect(config: OpenAIJudgeConfig) -> Any:
    """The `openai` client. It is imported here: a second that nothing else has to wait for."""
    try:
        import httpx2
        import openai
    except ImportError:
        raise ConfigError("A judge of `kind: openai` needs the openai package: pip install 'gipo-mc[judge]'.") from None
    key = _key(config.key_variable) or "none"
    local = urlsplit(config.base_url).hostname in ("localhost", "127.0.0.1", "::1")
    client = openai.OpenAI(
        base_url=config.base_url,
        api_key=key,
        # The client sends what OPENAI_CUSTOM_HEADERS holds to any server, an Authorization in place of the key.
        default_headers={**dict.fromkeys(_ambient_headers(), openai.Omit()), "Authorization": f"Bearer {key}"},
        max_retries=0,
        timeout=httpx2.Timeout(config.timeout_seconds, connect=min(10.0, config.timeout_seconds)),
        http_client=httpx2.Client(
            trust_env=not local,  # a proxy for the internet does not reach this machine, and need not see the key
            follow_redirects=False,  # the key goes to the server that was named, and nowhere else
            limits=httpx2.Limits(max_connections=config.workers),
            timeout=config.timeout_seconds,
        ),
    )
    # Names of an account with OpenAI, which the client takes from the environment and sends to any server.
    client.organization = client.project = None
    return client


def _ambient_headers() -> list[str]:
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    return [line.partition(":")[0].strip() for line in lines if ":" in line]


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
