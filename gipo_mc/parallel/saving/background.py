"""A process that writes the state of this moment, while the one that forked it changes the state.

A fork has the memory as it was, and the system copies only the pages that training then changes: nothing is copied
before training goes on. The child calls nothing but what writes files. It has no other descriptors than its files, so
that it holds neither the lock on the run folder nor a connection, and it dies with its parent.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import torch

#: From <sys/prctl.h>: the signal that a process gets when its parent is gone.
_PARENT_DEATH_SIGNAL = 1
_ASKS_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Background:
    """Runs `work` in a forked process; what that returns has to be JSON-able."""

    def __init__(self, work: Callable[[], Any]) -> None:
        assert threading.current_thread() is threading.main_thread(), "a child dies with the thread that forked it"
        self._report = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the result
        self._status: int | None = None
        parent = os.getpid()
        everything = signal.valid_signals()
        # No handler of the parent's may run in the child, whose pipes are the parent's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, everything)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of a process with threads
                self._pid = os.fork()
            if not self._pid:
                _in_the_child(work, parent, self._report.fileno())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def done(self) -> bool:
        """Has it ended, well or not?"""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def result(self) -> Any:
        """Wait for its end; what `work` returned. Raises OSError for what failed there."""
        while not self.done():
            time.sleep(0.01)
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        self._report.seek(0)
        said = self._report.read()
        self._report.close()
        if code == 0:
            return json.loads(said)
        reason = said.decode(errors="replace") or f"its writer ended with {_named(code)}"
        raise OSError(reason)

    def kill(self) -> None:
        """End it now, if it goes on. Idempotent."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            _, self._status = os.waitpid(self._pid, 0)
            self._report.close()


def _named(code: int) -> str:
    if code == -signal.SIGKILL:
        return "signal SIGKILL, as where memory runs out"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _in_the_child(work: Callable[[], Any], parent: int, report: int) -> NoReturn:
    code = 1
    try:
        gc.disable()
        _die_with(parent)
        signal.set_wakeup_fd(-1)
        for number in _ASKS_TO_STOP:  # a signal to the whole job: the parent decides what becomes of the save
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        for descriptor in map(int, os.listdir("/dev/fd")):
            if descriptor not in (0, 1, 2, report):
                with suppress(OSError):  # that of the listing itself
                    os.close(descriptor)
        torch.set_num_threads(1)  # the threads of the parent's pool are not here
        _write_all(report, json.dumps(work()).encode())
        code = 0
    except BaseException as error:
        with suppress(OSError):
            _write_all(report, " ".join(f"{type(error).__name__}: {error}".split()).encode())
    finally:
        os._exit(code)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
