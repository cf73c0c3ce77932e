"""Every command ends with one sentence and an exit code: after an error, after Ctrl-C, and where nobody reads it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gipo_mc.errors import DataError
from gipo_mc.run.arguments import Parser
from gipo_mc.run.terminal import ctrl_c
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


@pytest.fixture
def listens() -> Iterator[None]:
    """To Ctrl-C, which is ignored where the tests run in the background."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("listens")
def test_ctrl_c_that_a_library_turned_into_another_error_is_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    def built() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise AttributeError("module 'yaml' has no attribute 'error'") from None
        return 0

    assert ended(built) == 130
    assert capsys.readouterr().err.split() == ["Interrupted."]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("listens")
def test_an_error_long_after_ctrl_c_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        monkeypatch.setattr(ctrl_c, "COMES_OF_IT", 0.0)
        time.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ended(work)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("words", [["-m", "gipo_mc", "doctor"], ["scripts/plan.py"], ["scripts/train_sft.py"]])
def test_ctrl_c_while_a_command_is_imported_is_one_line(words: list[str], ignored: bool, tmp_path: Path) -> None:
    """As behind nohup where it is ignored: then it goes on, here to an error of the test's."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'gipo_mc.tools.command':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            raise RuntimeError('went on')\n"
        "sys.meta_path.insert(0, Pressed())\n"
        f"signal.signal(signal.SIGINT, signal.{'SIG_IGN' if ignored else 'default_int_handler'})\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, "went on" in done.stderr) == ((1, True) if ignored else (130, False)), done.stderr
    assert done.stdout == "" and (ignored or done.stderr == "\nInterrupted.\n")


_IN_A_DESTRUCTOR = """
import os, signal, sys
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.waiting import importing

class Module:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def work():
    with importing():
        Module()
        print("went on")
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[1] == "other":
    signal.signal(signal.SIGINT, lambda *_: print("heard"))
sys.exit(ended(work))
"""


@pytest.mark.parametrize("answer, code, out", [("own", 130, []), ("other", 0, ["heard", "went", "on"])])
def test_ctrl_c_in_a_destructor_of_what_is_imported_is_not_lost(answer: str, code: int, out: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _IN_A_DESTRUCTOR, answer], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (code, out)
    assert done.stderr == ("" if code == 0 else "\nInterrupted.\n")


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
