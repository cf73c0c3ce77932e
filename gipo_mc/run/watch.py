"""A thread on each rank that sees what the main thread cannot: a signal while that is inside a collective, what other
ranks tell, calls that never return, the end of torchrun. It also keeps run_status.json fresh. Ctrl-C is the main
thread's, unless that does not hear it.

A signal that asks to stop sets a flag and nothing else. The loops look at it where the state of a run is whole
(`Session.stop_point`): there all ranks agree, save, and end with exit code 75. If no such point comes within
run.grace_seconds, this thread ends the process, and the last checkpoint stands.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import NoReturn

import torch.distributed as dist

from gipo_mc.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, PeerError, Requeue, StorageError
from gipo_mc.parallel import limits, news
from gipo_mc.parallel.nodes.beats import Beats
from gipo_mc.run import checkpoint
from gipo_mc.run.folder import RunFolder, State
from gipo_mc.run.jsonl import printable_lines
from gipo_mc.run.terminal.ctrl_c import SAVES_FIRST, is_a_commands
from gipo_mc.run.terminal.ending import interrupted

#: What asks a job to stop: torchrun and Slurm send SIGTERM, `#SBATCH --signal=USR1@60` the second, and a terminal that
#: is closed the third (under nohup it is ignored, and stays so).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
#: Seconds between two looks at the other ranks.
LOOK = 0.5
#: Seconds between two signs of life in run_status.json.
BEAT = 30.0
#: Seconds from another rank's error to the end of this one, if it does not find its own.
PATIENCE = 5.0
#: Seconds from Ctrl-C to the end of a process whose main thread is in native code, where it waits for another rank, or
#: was in a destructor, where Python drops an interrupt.
UNHEARD = 5.0
#: Seconds that a rank waits with its end after a hang, so that the others can show where they are.
LAST_WORDS = 2.0


class Watch:
    """asked: what asked this rank to stop, or "". Signals go to the latest watch, as long as the process lives; a new
    one takes over what the one before was asked. begun: has all been passed that refuses a start? closed: does the main
    thread end the run, and this one watch no more?
    """

    def __init__(self, folder: RunFolder, write_status: Callable[..., None], grace: float) -> None:
        """folder: of the run, for signs of life and for what was saved. write_status: called at an end with state, exit
        code and message. grace: seconds from the wish to stop to the end of this process."""
        global _latest
        self.folder, self.write_status = folder, write_status
        self.asked: str = _latest.asked if _latest else ""
        self._grace = grace
        self._store, self._rank = news.own_store(), dist.get_rank()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._saving = self.begun = False
        self._asked_at = self._failed_at = self._interrupted_at = 0.0
        self._beaten_at = time.monotonic()
        self._beats = Beats(self._store, self._beaten_at)
        self._ends = threading.Lock()  # of the one thread that ends the run
        self.closed = False
        self._signals, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        _latest = self

    def ask(self, why: str) -> None:
        """Ask the run to stop; the first reason stays."""
        self.asked = self.asked or why

    def stop(self) -> NoReturn:
        """All ranks stop here, and what they are going to continue from is saved. Raises Requeue."""
        why = self.asked or news.announced_stop() or "a signal to another rank"
        raise Requeue(f"Asked to stop by {why}. {self.what_stands()}")

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around a save, a due one too: what it takes does not count as grace time, if whoever asked lets it."""
        begin, self._saving = time.monotonic(), True
        try:
            yield
        finally:
            if self._asked_at:
                self._asked_at += time.monotonic() - max(begin, self._asked_at)
            self._saving = False

    def what_stands(self) -> str:
        """What the same command will continue from, a sentence."""
        if saved := checkpoint.steps(self.folder.checkpoints):
            return f"The same command continues from the checkpoint of step {saved[-1]}."
        return "No step was saved yet: the same command begins again."

    def close(self) -> None:
        """The main thread ends the run: watch no more. Does not return where this thread ends it already."""
        if self.closed:
            return
        self._ends.acquire()
        self.closed = True
        os.write(self._wake, b"\0")
        self._thread.join()
        self._beats.leave()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        os.close(self._signals)
        os.close(self._wake)

    # ------------------------------------------------------------------------------------------------ in the thread
    def _run(self) -> None:
        while not self.closed:
            self._hear_signals()
            now = time.monotonic()
            self._look_for_a_stop(now)
            self._look_for_ctrl_c(now)
            self._look_for_errors(now)
            self._look_for_hangs()
            self._look_for_silence(now)
            if now - self._beaten_at > BEAT:
                self._beaten_at = now
                with suppress(StorageError):  # what the run writes next will say so
                    self.folder.beat()

    def _hear_signals(self) -> None:
        """Wait for the next look. Python runs a handler only when the main thread is back from native code; the number
        of the signal is in the pipe at once."""
        ear = select.poll()  # `select.select` takes no descriptor beyond 1023
        ear.register(self._signals, select.POLLIN)
        for number in os.read(self._signals, 64) if ear.poll(1000 * LOOK) else b"":
            if number in SIGNALS:
                _leave_lost_terminal()
                self.ask(signal.Signals(number).name)
            elif number == signal.SIGINT and is_a_commands():
                self._interrupted_at = time.monotonic()

    def _look_for_ctrl_c(self, now: float) -> None:
        if self._interrupted_at and now - self._interrupted_at > UNHEARD and not self._saving:
            stands = self.what_stands()
            said = f"Interrupted. {stands} {SAVES_FIRST}"
            self._end("failed", EXIT_INTERRUPTED, f"Interrupted by the user. {stands}", said=said)

    def _look_for_a_stop(self, now: float) -> None:
        if self._launcher and os.getppid() != self._launcher:
            self.ask("the death of torchrun")
        if not self.asked:
            self.asked = news.announced_stop(self._store)
        if not self.asked:
            return
        if not self._asked_at:
            self._asked_at = now
            news.announce_stop(self.asked, self._store)
        if now - self._asked_at > self._grace and not self._saving:
            message = (
                f"Asked to stop by {self.asked}, and no step ended within {self._grace:g} seconds "
                f"(run.grace_seconds). {self.what_stands()}"
            )
            news.announce_end(message, self._store)
            self._end("requeue", EXIT_REQUEUE, message)

    def _look_for_errors(self, now: float) -> None:
        error = news.first_error(self._store)
        if error is None or error.rank == self._rank:
            return
        if not self._failed_at:
            self._failed_at = now
            if error.hang:
                self._show_stack()
        if now - self._failed_at > PATIENCE:
            self._end("failed", error.exit_code, error.message, error.place)

    def _look_for_hangs(self) -> None:
        if late := limits.overdue():
            news.record_error(PeerError.exit_code, late, hang=True, store=self._store)
            self._show_stack()
            time.sleep(LAST_WORDS)
            self._end("failed", PeerError.exit_code, late)

    def _look_for_silence(self, now: float) -> None:
        if lost := self._beats.look(now):
            news.record_error(PeerError.exit_code, lost, store=self._store)
            self._end("failed", PeerError.exit_code, lost)

    def _show_stack(self) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        show_stack(traceback.format_stack(frame))

    def _end(self, state: State, exit_code: int, message: str, place: str = "", said: str = "") -> None:
        """End the process, whatever the main thread does. place: of the rank whose message it is. said: what is printed
        instead of the message."""
        if not self._ends.acquire(blocking=False):
            return  # the main thread ends it already
        try:
            self.write_status(state, exit_code, message + place)
            if news.first_to_say(message, self._store):
                said = said or (message if state == "requeue" else f"error: {message}{place}")
                print(f"\n{printable_lines(said)}", file=sys.stderr, flush=True)
            sys.stdout.flush()
        finally:
            os._exit(exit_code)


_latest: Watch | None = None


@contextmanager
def listening(early: Callable[[str], None] | None = None) -> Iterator[None]:
    """Take the signals that ask to stop. Before the first `Watch` there is nothing to lose: they end the process.

    early: told the sentence on that end. Given by a command, which may be waiting for other ranks in native code, where
    no handler runs: a thread listens for it. Where no signal came, what was there before comes back at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in heeded}
    for number in heeded:
        signal.siginterrupt(number, False)  # a write of a checkpoint goes on
    try:
        with _listening_early(early) if early else nullcontext():
            yield
    finally:
        if _latest is None or not _latest.asked:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _listening_early(early: Callable[[str], None]) -> Iterator[None]:
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)  # until a watch takes its own
    thread = threading.Thread(target=_end_early, args=(signals, early), name="early", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.write(wake, b"\0")
        thread.join()
        os.close(signals)
        os.close(wake)


def _on_signal(number: int, frame: FrameType | None) -> None:
    _leave_lost_terminal()
    if _latest is not None:
        _latest.ask(signal.Signals(number).name)


def _leave_lost_terminal() -> None:
    """Drop what is printed to a terminal that is gone: a write to it is an error, which would end the run unsaved."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream)
            os.close(null)


def _end_early(signals: int, early: Callable[[str], None]) -> None:
    ear, patience = select.poll(), None
    ear.register(signals, select.POLLIN)
    while True:
        if not ear.poll(patience):
            if _watched():
                patience = None
                continue
            os._exit(interrupted(KeyboardInterrupt()))
        number = os.read(signals, 1)[0]
        if number == 0:  # the command is over
            return
        if number == signal.SIGINT:
            patience = UNHEARD * 1000
        if number not in SIGNALS:
            continue
        _leave_lost_terminal()
        name = signal.Signals(number).name
        if watch := _watched():  # it took over between the signal and this look
            watch.ask(name)
            continue
        try:
            early(f"Asked to stop by {name} before the run began. The same command starts it.")
        finally:
            os._exit(EXIT_REQUEUE)


def _watched() -> Watch | None:
    """The watch of a run that goes on."""
    return _latest if _latest is not None and not _latest.closed else None


def show_stack(lines: list[str]) -> None:
    """Print where this rank is."""
    print(f"\nRank {dist.get_rank()} is here:\n{''.join(lines)}", file=sys.stderr, end="", flush=True)
