"""The pipe between the benchmark and a rival: JSON lines, one measured unit of work at a time.

The rival's process stays alive and works only when it is asked to, so that the benchmark can let the sides take turns.
It runs in an environment of its own; this file therefore imports nothing but the standard library.

    benchmark -> worker    {"unit": "sampled"}          one unit of work, please; an end of file: that was all
    worker -> benchmark    {"ready": {...}}             once: what it is, after everything was loaded and tried
                           {"wall": s, "processor": s, ...}    one unit was done
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TextIO

ROOT = Path(__file__).resolve().parents[2]
#: Every side computes with one thread.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
#: Lines of a worker's error stream that are shown when it fails.
_LAST_LINES = 12


class WorkerError(RuntimeError):
    """A worker ended, or answered with something that is no answer."""


class Missing(RuntimeError):
    """The rival is not installed in the environment that was given for it."""


class Worker:
    """The benchmark's end: one side of one workload in a process of its own."""

    def __init__(self, command: Sequence[str], name: str, log: Path) -> None:
        """Starts it. name: for messages. log: where its error stream goes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment = kept | ONE_THREAD | {"PYTHONWARNINGS": "ignore"}
        self._log, self._name = log, name
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ready(self) -> dict[str, Any]:
        """Waits until everything is loaded; what the worker says of itself. Raises Missing, WorkerError."""
        answer = self._answer()
        if "missing" in answer:
            raise Missing(str(answer["missing"]))
        return dict(answer["ready"])

    def measure(self, unit: str) -> dict[str, Any]:
        """Lets it do one unit of work. Raises WorkerError."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"unit": unit}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self, seconds: float = 30.0) -> None:
        """Tells it that there is no more to do, and waits; ends it where it does not end by itself."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            last = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            raise WorkerError(
                f"{self._name} ended with exit code {code}:\n" + "\n".join(f"    {text}" for text in last)
            )
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


class Turns:
    """The worker's end. `wait` stands where a unit of work ends: it answers, and returns when the next one begins."""

    def __init__(self, orders: TextIO, answers: TextIO) -> None:
        self._orders, self._answers = orders, answers
        self._begin: tuple[float, float] | None = None

    def wait(self, **figures: Any) -> str:
        """The next unit to do. figures: of the unit that was done, or at the first call of the worker itself.

        Clocks run from the return of one call to the next call. Raises SystemExit where there is no more to do.
        """
        if self._begin is None:
            self._say({"ready": figures})
        else:
            wall, processor = time.perf_counter() - self._begin[0], processor_seconds() - self._begin[1]
            self._say({"wall": wall, "processor": processor} | figures)
        line = self._orders.readline()
        if not line:
            raise SystemExit(0)
        unit = str(json.loads(line)["unit"])
        gc.collect()
        self._begin = time.perf_counter(), processor_seconds()
        return unit

    def missing(self, what: str) -> NoReturn:
        """Nothing can be measured here."""
        self._say({"missing": what})
        raise SystemExit(0)

    def _say(self, answer: Mapping[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def open_turns() -> Turns:
    """The pipe of this process. What libraries print goes to the error stream from here on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return Turns(sys.stdin, answers)


def processor_seconds() -> float:
    """Of all threads of this process and of its children, those that live included."""
    own = os.times()
    living = sum(_spent(child) for child in _descendants(os.getpid()))
    return time.process_time() + own.children_user + own.children_system + living


def tree_seconds(process: int) -> float:
    """Of a process and its children, those included that ended and were waited for; to a hundredth of a second."""
    return sum(_spent(one) for one in (process, *_descendants(process)))


def _descendants(process: int) -> list[int]:
    found: list[int] = []
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in tasks.read_text().split()]
        except OSError:  # the thread ended meanwhile
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _spent(process: int) -> float:
    """Seconds of all threads of a process and of the children that it waited for."""
    try:
        # The second field, the name, may hold spaces: the third is the first one behind it.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended meanwhile, and its parent counts it from now on
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(what: str = "VmRSS") -> int:
    """Of this process: VmRSS, now; VmHWM, the highest since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def forget_peak() -> None:
    """Give memory that nobody uses back to the system, and let VmHWM begin anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by name; a package that is not there is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
