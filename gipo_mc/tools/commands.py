"""Commands of this package as processes, from a checkout as from an installed wheel."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from string import Template
from types import FrameType
from typing import IO

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


def attempt(*commands: list[str], names: Sequence[str] = (), aside: bool = False) -> tuple[int, int]:
    """Run commands side by side: (exit code of the first that failed or 0, signal that asked this process to stop or
    0). Signals are passed on, once each, to every command: it has a session of its own, so that Ctrl-C does not reach
    its ranks twice. names: what each command's lines begin with, where there are several. aside: what they print goes
    to stderr."""
    asked = 0
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = number
        for child in children:
            child.send_signal(number)

    earlier = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        # Ranks that share a machine's cores do best with one thread each. On a busy machine they wait for each other
        # for seconds, at the start above all; torch warns of each wait as of a lost connection, and tries again.
        environment = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
        out, err = (subprocess.PIPE, subprocess.PIPE) if names else (2 if aside else None, None)
        copies = []
        for at, words in enumerate(commands):
            child = subprocess.Popen(words, env=environment, start_new_session=True, stdout=out, stderr=err)
            children.append(child)
            if asked:  # before there was somebody to pass it on to
                child.send_signal(asked)
            if names:
                copies += [
                    threading.Thread(target=_copy, args=(child.stdout, 2 if aside else 1, names[at])),
                    threading.Thread(target=_copy, args=(child.stderr, 2, names[at])),
                ]
        for copy in copies:
            copy.start()
        codes = [child.wait() for child in children]
        for copy in copies:
            copy.join()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    code = next((code for code in codes if code), 0)
    return (code if code >= 0 else 128 - code), asked


def _copy(lines: IO[bytes], to: int, name: str) -> None:
    """Lines of a command to a file descriptor of this process, each behind the command's name and written at once, so
    that two commands' lines never mix. What nobody reads any more is read on, so that the command can end."""
    for line in lines:
        with contextlib.suppress(BrokenPipeError):
            os.write(to, f"{name} | ".encode() + line)
