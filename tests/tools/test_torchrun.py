"""torchrun, ended as commands of this package end: with the code of the rank that failed, and without its traceback."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from gipo_mc.tools import torchrun
from gipo_mc.tools.commands import for_torchrun

WORDS = ["--standalone", "--no-python"]


def _launched(folder: Path, *words: str) -> tuple[int, Path]:
    """(process, what it says on stderr): a fork, because torchrun takes over signals."""
    said = folder / "stderr"
    if not (pid := os.fork()):
        code = 99
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            code = torchrun.main([*WORDS, *words])
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid, said


def _code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# torchrun makes one "$" of two.
@pytest.mark.parametrize(("line", "code"), [("exit 0", 0), ("exit $((RANK * 4))", 4), ("kill -KILL $$$$", 137)])
def test_the_code_is_that_of_the_rank_that_failed(line: str, code: int, tmp_path: Path) -> None:
    pid, said = _launched(tmp_path, "--nproc-per-node=2", "sh", "-c", line)
    assert _code(pid) == code and said.read_text() == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_reaches_the_ranks_and_ends_it_without_a_word(number: int, code: int, tmp_path: Path) -> None:
    ready, asked = tmp_path / "ready", tmp_path / "asked"
    line = f"trap 'touch {asked}; exit 1' INT TERM; touch {ready}; while :; do sleep 0.05; done"
    pid, said = _launched(tmp_path, "--nproc-per-node=1", "sh", "-c", line)
    while not ready.exists():
        time.sleep(0.01)
    os.kill(pid, number)
    assert _code(pid) == code and asked.exists()
    assert said.read_text() in ("", "Terminated\n")  # which the shell says of `sleep`


def test_words_reach_the_program_as_they_are(tmp_path: Path) -> None:
    words, out = ["a$$b", "$$$", "${run.dir}", "$HOME"], tmp_path / "out"
    line = f'printf "%s\\n" "$@" >{out}'
    pid, _ = _launched(tmp_path, "--nproc-per-node=1", "sh", "-c", line, "sh", *for_torchrun(words))
    assert _code(pid) == 0 and out.read_text().splitlines() == words


def test_nodes_that_do_not_meet_are_told(tmp_path: Path) -> None:
    words = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=1", "--rdzv-endpoint=127.0.0.1:1"]
    words += ["--rdzv-conf=is_host=false,read_timeout=1", "true"]  # not one that would listen there itself
    pid, said = _launched(tmp_path, *words)
    assert _code(pid) == 7 and "error: The nodes did not meet" in said.read_text()
    assert "Traceback" not in said.read_text()
