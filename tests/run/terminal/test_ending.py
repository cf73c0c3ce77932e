"""Every command ends with one sentence and an exit code: after an error, after Ctrl-C, and where nobody reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from gipo_mc.errors import DataError
from gipo_mc.run.arguments import Parser
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.voice import is_quiet, tell
from tests.source_rules import ROOT


def _raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def test_an_error_and_ctrl_c_are_one_sentence_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: 5) == 5
    assert ended(_raising(DataError("rows.jsonl:3 is no row."))) == 3
    assert ended(_raising(KeyboardInterrupt())) == 130
    assert ended(_raising(KeyboardInterrupt("The rest is asked next time."))) == 130
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "",
        "error: rows.jsonl:3 is no row.",
        "",
        "Interrupted.",
        "",
        "Interrupted. The rest is asked next time.",
    ]


def test_rich_ends_a_command_whose_reader_has_gone_as_others_do() -> None:
    def work() -> int:
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904 - as rich.console does

    assert ended(work) == 141


def test_what_nobody_foresaw_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        ended(_raising(ZeroDivisionError()))
    with pytest.raises(BrokenPipeError):  # of another pipe than standard output
        ended(_raising(BrokenPipeError()))


@pytest.mark.parametrize("words", [["train", "gi-ppo"], ["report", "runs/x"], ["config", "check", "x.yaml"], ["plan"]])
def test_an_environment_that_lacks_what_the_package_needs_is_a_sentence(words: list[str]) -> None:
    # -S: no site-packages.
    command = [sys.executable, "-S", "-m", "gipo_mc", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("\nerror: ") and done.stderr.count("\n") == 2, done.stderr
    assert f" is not installed for {sys.executable}. Activate the environment" in done.stderr


def test_a_module_that_others_miss_keeps_its_traceback() -> None:
    code = "import not_a_module_of_anybody"
    with pytest.raises(ModuleNotFoundError):
        ended(lambda: exec(compile(code, "rewards.py", "exec")) or 0)


def _prints_into_a_closed_pipe(write: int) -> int:
    os.dup2(write, 1)
    os.close(write)
    sys.stdout = os.fdopen(1, "w", closefd=False)

    def work() -> int:
        for _ in range(100_000):
            print("a line of a long plan")
        return 0

    return ended(work)


def test_a_reader_that_has_gone_ends_it_without_a_word() -> None:
    read, write = os.pipe()
    words_read, words_written = os.pipe()
    if not (pid := os.fork()):
        os.close(read)
        os.dup2(words_written, 2)
        code = 1
        try:
            code = _prints_into_a_closed_pipe(write)
            sys.stdout.flush()
        finally:
            os._exit(code)
    for descriptor in (read, write, words_written):
        os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(words_read) as words:
        assert (os.waitstatus_to_exitcode(status), words.read()) == (141, "")


def test_quiet_holds_for_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    def work(words: list[str]) -> int:
        Parser("plan").parse_args(words)
        tell(f"quiet is {is_quiet()}")
        return 0

    assert (ended(lambda: work(["--quiet"])), ended(lambda: work([]))) == (0, 0)
    assert capsys.readouterr().err == "quiet is False\n" and not is_quiet()
