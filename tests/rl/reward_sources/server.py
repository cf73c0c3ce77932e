"""A reward server on loopback, with the faults of real ones: the reward of a sample is the length of its response."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from tests.standins.loopback import FailingHandler


class Handler(FailingHandler):
    server: RewardServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(asked)
            self.server.tokens.append(self.headers.get("Authorization", ""))
            fault = self.server.script.pop(0) if self.server.script else ""
        try:
            FAULTS[fault](self, asked)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def rewards_of(asked: dict[str, Any]) -> list[Any]:
    return [len(sample["response"]) for sample in asked["samples"]]


def answer(handler: Handler, asked: dict[str, Any], rewards: Any = None) -> None:
    found = rewards_of(asked) if rewards is None else rewards
    handler.send(200, json.dumps({"rewards": found}).encode())


def _slow(handler: Handler, asked: dict[str, Any]) -> None:
    time.sleep(handler.server.slow)
    answer(handler, asked)


def _drip(handler: Handler, asked: dict[str, Any]) -> None:
    handler.drip(100, handler.server.slow / 10)


def _half(handler: Handler, asked: dict[str, Any]) -> None:
    handler.break_off(b'{"rewards": [1.0,')


def _status(status: int, body: bytes = b"", **headers: str) -> Callable[[Handler, dict[str, Any]], None]:
    return lambda handler, asked: handler.send(status, body, **headers)


def _rewards(change: Callable[[list[Any]], Any]) -> Callable[[Handler, dict[str, Any]], None]:
    return lambda handler, asked: answer(handler, asked, change(rewards_of(asked)))


FAULTS: dict[str, Callable[[Handler, dict[str, Any]], None]] = {
    "": answer,
    "slow": _slow,
    "drip": _drip,
    "dies": lambda handler, asked: handler.die(),
    "dies half-way": _half,
    "500": _status(500, b"out of memory"),
    "503": _status(503, b"loading", Retry_After="0.01"),
    "429": _status(429, b"slow down", Retry_After="0.02"),
    "401": lambda handler, asked: handler.send(401, f"no such token: {handler.headers['Authorization']}".encode()),
    "302": _status(302, b"", Location="http://127.0.0.2:9/"),
    "html": _status(200, b"<!DOCTYPE html><title>Sign in</title>"),
    "deep": _status(200, b"[" * 50_000),
    "endless": _status(200, b" " * 500_000),
    "one short": _rewards(lambda rewards: rewards[1:]),
    "null": _rewards(lambda rewards: [None, *rewards[1:]]),
    "text": _rewards(lambda rewards: ["1.0", *rewards[1:]]),
    "object": _rewards(lambda rewards: {"a": 1}),
}


class RewardServer(ThreadingHTTPServer):
    """script: faults in the order of requests; behind its end everything is answered. slow: seconds."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *script: str, slow: float = 0.05) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.slow = list(script), slow
        self.requests: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that has gone


@contextmanager
def reward_server(*script: str, slow: float = 0.05) -> Iterator[RewardServer]:
    server = RewardServer(*script, slow=slow)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
