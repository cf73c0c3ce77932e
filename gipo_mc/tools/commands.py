"""Commands of this package as processes, from a checkout as from an installed wheel."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from string import Template
from types import FrameType

from gipo_mc.run.jsonl import printable

_TORCHRUN = ["-m", "gipo_mc.tools.torchrun"]


def gipo_mc(*words: str) -> list[str]:
    """`gipo-mc words`, behind `python` or torchrun."""
    return ["-m", "gipo_mc", *words]


def trainer(command: str) -> list[str]:
    """A trainer by the name that configurations have for it (train_gi_ppo), behind `python` or torchrun."""
    return gipo_mc("train", command.removeprefix("train_").replace("_", "-"))


def launched(words: list[str], ranks: int) -> list[str]:
    """These words on so many ranks of this machine."""
    if ranks == 1:
        return [sys.executable, *words]
    return [sys.executable, *_TORCHRUN, "--standalone", f"--nproc-per-node={ranks}", *for_torchrun(words)]


def for_torchrun(words: Sequence[str]) -> list[str]:
    """Words of a program, written so that torchrun passes them on as they were: it makes one "$" of two, and the rank
    of `$local_rank`."""
    return [
        word.replace("$", "$$") if Template(word).safe_substitute(local_rank="") != word else word for word in words
    ]


def shown(words: list[str]) -> str:
    """Words of `launched` as a person would type them, to be printed."""
    if words[:3] == [sys.executable, *_TORCHRUN]:
        words = ["torchrun", *words[3:]]
    elif words[:3] == [sys.executable, *gipo_mc()]:
        words = ["gipo-mc", *words[3:]]
    return printable(shlex.join(words))


def attempt(words: list[str], *, aside: bool = False) -> tuple[int, int]:
    """(exit code, signal that asked this process to stop or 0). Signals are passed on, once each, to the command: it
    has a session of its own, so that Ctrl-C does not reach its ranks twice. aside: what it prints goes to stderr."""
    asked = 0
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = number
        if child is not None:
            child.send_signal(number)

    earlier = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        # Ranks that share a machine's cores do best with one thread each. On a busy machine they wait for each other
        # for seconds, at the start above all; torch warns of each wait as of a lost connection, and tries again.
        environment = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
        child = subprocess.Popen(words, env=environment, start_new_session=True, stdout=2 if aside else None)
        if asked:  # before there was somebody to pass it on to
            child.send_signal(asked)
        code = child.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    return (code if code >= 0 else 128 - code), asked
