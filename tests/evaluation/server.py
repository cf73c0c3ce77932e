"""A stand-in for a judge's server: chat completions over HTTP on loopback, with the faults of real servers.

A fault is a function of the handler that sends something, or nothing. `Standin.script` is asked for one before each
request: by name, from a list, or drawn by seed. What the server answered in full is counted by request: a client that
asks again for it pays twice.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from typing import Any

from tests.standins.loopback import FailingHandler

Body = dict[str, Any]


def completion(content: Any, finish_reason: str = "stop", model: str = "judge-1", **message: Any) -> Body:
    return {
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"content": content, **message}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


def error(message: str, **more: Any) -> Body:
    return {"error": {"message": message, **more}}


class Handler(FailingHandler):
    server: Standin
    asked: Body

    def do_POST(self) -> None:
        self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.next_fault(self)
        try:
            FAULTS[fault](self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, status: int, body: Body | bytes, counted: bool = False, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response_only(status)  # without the date, which a fault may set
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        if counted:
            self.server.count(self.asked)


def answer(handler: Handler) -> None:
    refusal = handler.server.refusal(handler.asked)
    if refusal:
        handler.send(*refusal)
    else:
        handler.send(200, completion(handler.server.reply(handler.asked)), counted=True)


def _slow(handler: Handler) -> None:
    time.sleep(handler.server.slow)
    answer(handler)


def _drip(handler: Handler) -> None:
    handler.drip(200, handler.server.slow / 10)


def _half(handler: Handler) -> None:
    handler.break_off(b'{"choices": [{"mess')


def _sends(status: int, body: Body | bytes, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.send(status, body, **headers)


FAULTS: dict[str, Callable[[Handler], None]] = {
    "": answer,
    "slow": _slow,
    "drip": _drip,
    "dies": Handler.die,
    "dies half-way": _half,
    "500": _sends(500, error("out of memory")),
    "503": _sends(503, b"upstream connect error"),
    "503 seconds": _sends(503, error("loading the model"), Retry_After="0.05"),
    "429": _sends(429, error("slow down", code="rate_limit_exceeded")),
    "429 seconds": _sends(429, error("slow down", code="rate_limit_exceeded"), Retry_After="0.1"),
    # Two seconds after the server's own clock, which is wrong by years.
    "429 date": _sends(
        429,
        error("slow down"),
        Retry_After="Tue, 01 Jan 2030 00:00:01 GMT",
        Date="Tue, 01 Jan 2030 00:00:00 GMT",
    ),
    "429 past date": lambda handler: handler.send(429, error("slow down"), Retry_After=formatdate(0, usegmt=True)),
    "429 100 seconds": _sends(429, error("slow down"), Retry_After="100"),
    "429 long": _sends(429, error("slow down"), Retry_After="300"),
    "429 unreadable": _sends(429, error("slow down"), Retry_After="soon"),
    "quota": _sends(429, error("You exceeded your current quota.", code="insufficient_quota"), Retry_After="1"),
    "401": lambda handler: handler.send(401, error(f"Incorrect key: {handler.headers['Authorization']}")),
    "401 starred": _sends(401, error("Incorrect API key provided: sk-start***********9end.")),
    "402": _sends(402, error("Insufficient credits")),
    "403": _sends(403, error("Your input was flagged by moderation.")),
    "404": _sends(404, error("The model `x` does not exist.")),
    "307": _sends(307, b"", Location="http://127.0.0.2:9/v1/chat/completions?token=hidden"),
    "too long": _sends(400, error("max_tokens is too large: 9000. This model has 4096.")),
    "error in 200": _sends(200, error("Provider returned error", code=502)),
    "error in 200, no code": _sends(200, error("something went wrong")),
    "error in 200, 401": _sends(200, error("no such user", code=401)),
    "vllm's old error in 200": _sends(200, {"object": "error", "message": "too long", "code": 400}),
    "html": _sends(200, b"<!DOCTYPE html><html><title>Sign in</title></html>", Content_Type="text/html"),
    "no JSON": _sends(200, b"[" * 100_000),
    "no choices": _sends(200, {"object": "chat.completion"}),
    "empty choices": _sends(200, {**completion(""), "choices": []}),
    "strange choices": _sends(200, {**completion(""), "choices": ["A"]}),
    "null": _sends(200, completion(None)),
    "number": _sends(200, completion(17)),
    "reasoning": _sends(200, completion(None, reasoning="[[A]]")),
    "reasoning_content": _sends(200, completion("", reasoning_content="[[A]]")),
    "reasoning, length": _sends(200, completion(None, "length", reasoning="Let me think")),
    "length": _sends(200, completion("", "length")),
    "refusal": _sends(200, completion(None, refusal="I cannot judge that.")),
    "filter": _sends(200, completion(None, "content_filter")),
    "list": _sends(
        200,
        completion(
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": "B"}]},
                {"type": "text", "text": "Fine.\n"},
                {"type": "text", "text": "[[A]]"},
                {"type": "image_url"},
            ]
        ),
    ),
    "no usage": _sends(200, {**completion("fine"), "usage": None, "model": None}),
    "strange usage": _sends(200, {**completion("fine"), "usage": {"prompt_tokens": "7"}}),
    "surrogate": _sends(200, b'{"choices": [{"message": {"content": "a\\ud800b\\u0000c"}}], "model": "m"}'),
}
#: What a client gets over without a word, by trying again.
PASSING = ("dies", "dies half-way", "503 seconds", "429 seconds", "error in 200", "html", "slow")


class Standin(ThreadingHTTPServer):
    """The server, on a port of its own until `close`.

    script: faults in the order of requests, "" for an answer, which also follows its end. reply: the text of an answer,
    of the request's body. refuses: key of the body -> (status, error) for requests that hold it. slow: seconds.
    """

    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = True

    def __init__(
        self,
        script: Iterable[str] = (),
        reply: Callable[[Body], str] = lambda body: "fine",
        refuses: dict[str, tuple[int, Body]] | None = None,
        slow: float = 0.05,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = iter(script)
        self.reply = reply
        self.refuses = refuses or {}
        self.slow = slow
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.answered: Counter[str] = Counter()
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_fault(self, handler: Handler) -> str:
        with self._lock:
            self.requests.append(handler.asked)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.times.append(time.monotonic())
            return next(self.script, "")

    def refusal(self, asked: Body) -> tuple[int, Body] | None:
        return next((refusal for key, refusal in self.refuses.items() if key in asked), None)

    def count(self, asked: Body) -> None:
        with self._lock:
            self.answered[hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()] += 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def drawn(seed: int, share: float) -> Iterator[str]:
    """Faults that pass, for a share of the requests, at random."""
    draw = random.Random(seed)
    while True:
        yield draw.choice(PASSING) if draw.random() < share else ""


@contextmanager
def standin(*script: str, **options: Any) -> Iterator[Standin]:
    """`with standin("429 date", "html") as server:` ..., or with script=... that is no list."""
    server = Standin(**{"script": script, **options})
    try:
        yield server
    finally:
        with suppress(OSError):
            server.close()
