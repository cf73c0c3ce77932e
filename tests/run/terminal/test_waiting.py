"""Long work says how far it is and what is left: on a line that changes on a terminal, on few lines elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from gipo_mc.run.terminal import voice
from gipo_mc.run.terminal import waiting as module
from gipo_mc.run.terminal.waiting import duration, waiting
from tests.source_rules import ROOT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[io.StringIO, str], str]:
    """f(stream, text): waits until the stream has it, and returns all of it. Seconds are thousandths here."""
    for name in ("FIRST", "ON_TERMINAL", "LATER"):
        monkeypatch.setattr(module, name, getattr(module, name) / 1000)

    def look(stream: io.StringIO, text: str) -> str:
        deadline = time.monotonic() + 20
        while text not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.002)
        return stream.getvalue()

    return look


def test_a_log_gets_lines(seen: Callable[[io.StringIO, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with waiting("Trying layouts") as tell:
        tell(1, 4)
        said = seen(stream, "\n")
    assert said.startswith("Trying layouts 1/4, 0 s") and "\x1b" not in said and "\r" not in said


def test_a_terminal_gets_one_line_that_goes_away(
    seen: Callable[[io.StringIO, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("Importing", 100.0, logged=False):
        said = seen(stream, "left")
    assert "\r\x1b[KImporting, 0 s, about 1 min 40 s left" in said
    assert stream.getvalue().endswith("\r\x1b[K") and "\n" not in stream.getvalue()


def test_nothing_is_said_of_short_work_nor_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with waiting("short"):
        pass
    monkeypatch.setattr(module, "FIRST", 0.001)
    monkeypatch.setattr(voice, "_quiet", True)
    with waiting("quiet"):
        time.sleep(0.02)
    monkeypatch.setattr(voice, "_quiet", False)
    for options in ({"logged": False}, {"told": False}):
        with waiting("another rank", **options):
            time.sleep(0.02)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("spent", "done", "left"), [(10.0, 1, "30 s"), (10.0, 2, "10 s"), (10.0, 4, ""), (10.0, 0, "5 s"), (20.0, 0, "")]
)
def test_the_time_left_is_that_of_the_pace_or_of_the_usual(
    spent: float, done: int, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    progress = module.Progress("work", 15.0)
    clock[0] = spent
    progress(done, 4)
    assert progress.line() == f"work {done}/4, {duration(spent)}" + (f", about {left} left" if left else "")


def test_a_phase_counts_its_own_steps_and_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    progress = module.Progress("Converting", 15.0)
    clock[0] = 100.0
    progress.phase("reading weights")
    clock[0] = 102.0
    assert progress.line() == "Converting: reading weights, 1 min 42 s", "of a phase nothing is known before it begins"
    progress(1, 4)
    assert progress.line() == "Converting: reading weights 1/4, 1 min 42 s, about 6 s left of this"
    progress.phase("writing")
    assert progress.line() == "Converting: writing, 1 min 42 s"


def test_of_work_within_work_the_inner_alone_speaks(
    seen: Callable[[io.StringIO, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with waiting("training"):
        seen(stream, "training")
        with waiting("evaluation"):
            seen(stream, "evaluation")
            before = stream.getvalue().count("training")
            time.sleep(0.1)
            assert stream.getvalue().count("training") <= before + 1, "a line that was on its way"
        seen(stream, "training")


def test_doctor_waits_where_what_the_package_needs_is_missing() -> None:
    code = (
        "import time; from gipo_mc.run.terminal import waiting as module; module.FIRST = 0.05\n"
        "with module.waiting('Looking'): time.sleep(0.5)"
    )
    command = [sys.executable, "-S", "-c", code]  # -S: no site-packages
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "Looking, 0 s\n")
