"""`gipo-mc monitor`: a snapshot without a terminal, a screen in one that q, Ctrl-C and a signal end, refusals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from gipo_mc.tools.verbs.monitor import main
from tests.monitor.folders import append, rows, run
from tests.source_rules import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "gi")


def test_without_a_terminal_it_prints_one_snapshot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "gi  running  GI-PPO  step 40/80" in said and "Alarms" in said and "\x1b" not in said


def test_json_is_one_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), str(folder.parent / "none"), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["runs"]
    assert (first["phase"], first["step"], first["total"], first["seconds_left"]) == ("running", 40, 80, 140.0)
    assert first["metrics"]["reward/mean"] == 0.4 and second["phase"] == "absent" and second["seconds_each"] is None


def test_a_run_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder.parent / "gj"), "--once"]) == 3
    assert "is not there (yet). Did you mean" in " ".join(capsys.readouterr().out.split())  # it is as wide as the path
    assert main([str(folder.parent)]) == 3
    assert "it holds runs: name one, or several of" in capsys.readouterr().err
    assert main([str(folder), str(folder / ".")]) == 3 and "named twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["", "r --port 1", "r --host x", "r --serve --once", "r --serve --port 65536", "r --every 0", "r " * 8]
)
def test_words_that_do_not_go_together(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


class Terminal:
    """The monitor in a terminal of 80 by 24."""

    def __init__(self, *words: str) -> None:
        self.end, own = pty.openpty()
        self.resize(80, 24)
        command = [sys.executable, "-m", "gipo_mc", "monitor", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        self.own = own
        self.before = termios.tcgetattr(own)
        self.process = subprocess.Popen(command, stdin=own, stdout=own, stderr=own, env=environment)
        self.said = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, words: str) -> None:
        """Read until these words have been drawn."""
        deadline, start = time.monotonic() + 60, len(self.said)
        while words not in self.said[start:]:
            assert time.monotonic() < deadline, self.said[-2000:]
            if select.select([self.end], [], [], 1)[0]:
                self.said += os.read(self.end, 65536).decode("utf-8", "replace")

    def close(self) -> int:
        """Wait for the end, and hold that the terminal is as it was; returns the exit code."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.said[-2000:]
            if select.select([self.end], [], [], 0.1)[0]:
                self.said += os.read(self.end, 65536).decode("utf-8", "replace")
        while select.select([self.end], [], [], 0)[0]:
            self.said += os.read(self.end, 65536).decode("utf-8", "replace")
        assert termios.tcgetattr(self.own) == self.before
        assert self.said.count("\x1b[?1049h") == 1 and self.said.endswith("\x1b[?25h\x1b[?1049l"), "screen and cursor"
        os.close(self.end)
        os.close(self.own)
        return self.process.returncode


def test_it_follows_the_run_and_the_window_until_q(tmp_path: Path) -> None:
    path = run(tmp_path / "gi")
    terminal = Terminal(str(path), "--every", "0.2")
    terminal.until("step 40/80")
    append(path / "metrics.jsonl", rows(41, 47))
    terminal.until("step 47/80")
    terminal.resize(40, 12)
    terminal.until("every 0.2 s")
    os.write(terminal.end, b"q")
    assert terminal.close() == 0 and "Traceback" not in terminal.said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(folder: Path, how: signal.Signals) -> None:
    terminal = Terminal(str(folder))
    terminal.until("step 40/80")
    terminal.process.send_signal(how)
    assert terminal.close() == 0 and "Traceback" not in terminal.said
