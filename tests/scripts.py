"""Run a script of this repository as a program: its own process, arguments, environment and exit code.

The process is a fork of this one, in which torch, transformers and Megatron are imported already; a new interpreter
takes six seconds of processor time for them. That scripts find all they import in a new one is held by the test of
torchrun in tests/run/test_command.py.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path


def import_commands() -> None:
    """Import what commands import once their arguments are checked: before forks, which then start at once."""
    for name in ("rl.gi_ppo", "supervised.dpo", "supervised.reward_model", "supervised.sft", "tools.builtin_models"):
        importlib.import_module(f"gipo_mc.{name}")
    for name in ("tools.conversion", "tools.new_model", "tools.respond", "report.report"):
        importlib.import_module(f"gipo_mc.{name}")


class Script:
    """A script that was started."""

    def __init__(
        self, script: Path, *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self._output, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 - closed with self
        self._code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(script, list(arguments), dict(environment or {}), cwd)

    def _run(self, script: Path, arguments: list[str], environment: dict[str, str], cwd: Path | None) -> None:
        code = 1
        gc.freeze()  # as in tests/ranks.py
        try:
            os.dup2(self._output.fileno(), 1)
            os.dup2(self._errors.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
            os.environ.update(environment)
            if cwd:
                os.chdir(cwd)
            sys.argv, sys.path = [str(script), *arguments], [str(script.parent), *sys.path]
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.kill(self.pid, signal.SIGINT)

    def wait(self, timeout: float) -> bool:
        """Whether it ended within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.poll() is not None

    def ended(self) -> subprocess.CompletedProcess[str]:
        """What came of it; a script that still runs is killed."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(60)
        assert self._code is not None
        self._output.seek(0)
        self._errors.seek(0)
        return subprocess.CompletedProcess([], self._code, self._output.read(), self._errors.read())


def run_script(
    script: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """The script, to its end."""
    started = Script(script, *arguments, environment=environment, cwd=cwd)
    ended_itself = started.wait(timeout)
    done = started.ended()
    assert ended_itself, f"{script.name} did not end within {timeout:.0f} s: {done.stderr}"
    return done
