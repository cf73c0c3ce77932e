"""The monitor in a terminal: a screen of its own that follows runs until q or Ctrl-C, or one plain snapshot."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import rich.console
from rich.console import Group
from rich.live import Live

from gipo_mc.monitor.follow import Follower
from gipo_mc.monitor.frame import Look, frame
from gipo_mc.run.jsonl import printable

#: Seconds between two looks at the keys and at the window's size.
_TICK = 0.2
#: Letters of the monitor that older terminals have not.
_ASCII = str.maketrans({"·": "|", "→": "->", "…": "..", "×": "x", "“": '"', "”": '"', "±": "+-", "−": "-"})


def snapshot(followers: Sequence[Follower], file: TextIO | None = None, width: int | None = None) -> None:
    """Print how the runs stand now, in plain lines."""
    console = rich.console.Console(file=file or sys.stdout, width=width, highlight=False, soft_wrap=True)
    views = [follower.refresh() for follower in followers]
    for line in frame(views, _look(console, None)):
        console.print(line)


def watch(followers: Sequence[Follower], every: float) -> None:
    """Follow the runs on the whole screen until q, Ctrl-C or a signal that ends. every: seconds between two looks."""
    console = rich.console.Console(highlight=False, soft_wrap=True)
    with (
        ending_by_signal(),
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live,
    ):
        while True:
            views = [follower.refresh() for follower in followers]
            shown = _shown(live, console, views, every)
            due = time.monotonic() + every
            while time.monotonic() < due:
                if pressed(min(_TICK, max(0.0, due - time.monotonic()))) in ("q", "Q", "\x03"):
                    return
                if (console.width, console.height) != shown:
                    shown = _shown(live, console, views, every)


def can_follow() -> bool:
    """Is this a terminal that a screen can be drawn on?"""
    console = rich.console.Console()
    return console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()


def _shown(live: Live, console: rich.console.Console, views: Sequence, every: float) -> tuple[int, int]:
    """Draw, and return the size that was drawn for."""
    size = console.width, console.height
    look = _look(console, size[1])
    footer = f"q: end · every {every:g} s · {time.strftime('%H:%M:%S')}"
    live.update(Group(*frame(views, look, look.clean(footer))), refresh=True)
    return size


def _look(console: rich.console.Console, height: int | None) -> Look:
    encoding = console.encoding.lower()
    unicode = encoding.startswith("utf")

    def clean(text: str) -> str:
        text = printable(text)
        if unicode:
            return text
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)

    colours = console.color_system is not None and not console.no_color
    return Look(max(20, console.width), height, clean, unicode, colours)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key and returns it, "" without one. Ctrl-C stays a signal."""
    if not sys.stdin.isatty():

        def sleep(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield sleep
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def wait(seconds: float) -> str:
        if not select.select([descriptor], [], [], seconds)[0]:
            return ""
        # Nothing to read although it can be: the terminal is gone.
        return os.read(descriptor, 1).decode("ascii", "replace") or "q"

    try:
        tty.setcbreak(descriptor)
        yield wait
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def ending_by_signal() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the monitor as Ctrl-C does, so that the terminal is put back; Ctrl-C, too, where a
    shell that started this in the background had it ignored."""
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
