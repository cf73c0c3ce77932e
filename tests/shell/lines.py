"""Run lines of shell as a user types them, one bash for all of them, with `python` and `torchrun` that start at once.

PATH begins with small programs named python, torchrun, gipo-mc, make and pip. The first three hand their arguments,
environment, folder and streams to the process of the tests, which forks: torch and Megatron are imported there already,
which takes six seconds of processor time otherwise, and tests/shell/short_runs.py cuts what takes long. `make` says
what it would do (make -n), so that a target has to exist; `pip install -e .` is left to CI, which has built the package
before any test.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.run import get_args_parser

from tests.scripts import import_commands
from tests.shell.short_runs import shorten

_CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
request = {{"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
sys.exit(int(server.makefile().read() or 1))
"""
_PIP = """#!/bin/sh
[ "$1" = install ] && [ "$2" = -e ] && [ -f "${3%%[*}/pyproject.toml" ] && exit 0
echo "pip $*: only 'pip install -e .' is known, in a folder with a pyproject.toml" >&2
exit 1
"""
_MAKE = '#!/bin/sh\nexec {make} -n "$@"\n'
_MARK = "@@@"


@dataclass(frozen=True)
class Outcome:
    """A command that ran: its exit code, standard output and errors together, seconds by the clock."""

    command: str
    code: int
    output: str
    seconds: float


def run_lines(commands: Sequence[str], folder: Path, hub: Path, timeout: float = 400.0) -> list[Outcome]:
    """The commands (a line each, or several joined by backslashes) in one bash, in `folder`, whatever the others did.

    hub: see `tests.shell.short_runs.shorten`. A command that was not reached within `timeout` seconds is not among the
    outcomes; one that was running has code -1.
    """
    import_commands()  # before the forks
    short = Path(tempfile.mkdtemp(prefix="shell-"))  # an address of a socket has at most 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as listener, (short / "output").open("w+b") as output:
            listener.bind(str(short / "server"))
            listener.listen()
            _write_programs(short / "bin", str(short / "server"))
            lines = []
            for number, command in enumerate(commands):
                lines += [f'echo "{_MARK} begin {number} $EPOCHREALTIME"', command]
                lines += [f'echo "{_MARK} end {number} $EPOCHREALTIME $?"']
            script = short / "lines.sh"
            script.write_text("\n".join([*lines, ""]))
            environment = {**os.environ, "PATH": f"{short / 'bin'}:{os.environ['PATH']}", "LC_ALL": "C"}
            shell = subprocess.Popen(
                ["bash", str(script)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            _serve(listener, shell, short / "bin" / "python", hub, time.monotonic() + timeout)
            output.seek(0)
            return _outcomes(commands, output.read().decode(errors="replace"))
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _write_programs(folder: Path, address: str) -> None:
    folder.mkdir()
    client = _CLIENT.format(python=sys.executable, address=address)
    make = _MAKE.format(make=shlex.quote(shutil.which("make") or "make"))
    clients = (("python", client), ("torchrun", client), ("gipo-mc", client))
    for name, text in (*clients, ("make", make), ("pip", _PIP)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def _outcomes(commands: Sequence[str], output: str) -> list[Outcome]:
    found = []
    for part in output.split(f"{_MARK} begin ")[1:]:
        first, _, rest = part.partition("\n")
        number, begin = first.split()
        text, _, last = rest.partition(f"{_MARK} end {number} ")
        end, code = (last.split() or ["nan", "-1"])[:2]
        found.append(Outcome(commands[int(number)], int(code), text, float(end) - float(begin)))
    return found


# --------------------------------------------------------------------------------------------------------- the server
def _serve(listener: socket.socket, shell: subprocess.Popen[bytes], python: Path, hub: Path, deadline: float) -> None:
    """Fork for each request, and tell its client the exit code, until the shell ends or time is up."""
    running: dict[int, socket.socket] = {}
    while shell.poll() is None and time.monotonic() < deadline:
        if select.select([listener], [], [], 0.01)[0]:
            connection = listener.accept()[0]
            data, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
            while not data.endswith(b"\n"):
                data += connection.recv(1 << 16)
            if not (pid := os.fork()):
                for other in (listener, connection, *running.values()):
                    other.close()
                _child(json.loads(data), streams, python, hub)
            running[pid] = connection
            for stream in streams:
                os.close(stream)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                with running.pop(pid) as connection:
                    connection.sendall(str(code if code >= 0 else 128 - code).encode())
    for pid, connection in running.items():
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        connection.close()
    if shell.poll() is None:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def _child(request: dict[str, Any], streams: list[int], python: Path, hub: Path) -> NoReturn:
    """In the fork: become what was asked for."""
    code = 1
    try:
        os.setsid()
        gc.freeze()  # as in tests/ranks.py
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r", closefd=False) for n in range(3))
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.executable = str(python)  # programs that start others come back here
        shorten(hub)
        program, *words = request["words"]
        words = ["-m", "gipo_mc", *words] if program == "gipo-mc" else words
        code = _code_of(_torchrun if program == "torchrun" else _python, words)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _code_of(program: Callable[[list[str]], None], words: list[str]) -> int:
    """The exit code of a program that may end by SystemExit; what a text in it says is printed, as Python does."""
    try:
        program(words)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _python(words: list[str]) -> None:
    """`python words`."""
    torch.set_num_threads(1)
    if words[:2] in (["-m", "torch.distributed.run"], ["-m", "gipo_mc.tools.torchrun"]):
        _torchrun(words[2:])
    elif words[:1] == ["-c"]:
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[:1] == ["-m"]:
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif not Path(words[0]).is_file():
        print(f"python: can't open file {words[0]!r}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv, sys.path = words, [str(Path(words[0]).resolve().parent), *sys.path]
        runpy.run_path(words[0], run_name="__main__")


def _torchrun(words: list[str]) -> None:
    """`torchrun words` on this machine. Exits with 1 where a rank fails, and ends the others then."""
    options = get_args_parser().parse_args(words)
    ranks = int(options.nproc_per_node)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    os.environ.update(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    running = set()
    for rank in range(ranks):
        if not (pid := os.fork()):
            _rank(rank, [*["-m"] * options.module, options.training_script, *options.training_script_args])
        running.add(pid)
    failed = False
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status and not failed:
            failed = True
            for other in running:
                os.kill(other, signal.SIGTERM)
    sys.exit(int(failed))


def _rank(rank: int, words: list[str]) -> NoReturn:
    code = 1
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    try:
        code = _code_of(_python, words)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
