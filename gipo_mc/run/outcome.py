"""How a run ended, left in run_status.json and told to the other ranks, whatever happens.

The start of a command uses this, too, before torch is imported: functions of a run import what needs it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gipo_mc.errors import (
    EXIT_INTERRUPTED,
    EXIT_NO_READER,
    EXIT_REQUEUE,
    DataError,
    GipoError,
    NumericsError,
    OutOfMemoryError,
    PeerError,
    Requeue,
    StorageError,
)
from gipo_mc.run.arguments import say_warning
from gipo_mc.run.folder import RunFolder, State
from gipo_mc.run.terminal.ctrl_c import SAVES_FIRST

if TYPE_CHECKING:
    from gipo_mc.run.watch import Watch


#: What torch says where an allocation fails, on either device.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def outcome_kept(watch: Watch) -> Iterator[None]:
    """Around a run: its status is written at the end. A collective's error comes out as PeerError or Requeue, a failed
    allocation as OutOfMemoryError; Ctrl-C, and what data, numbers or memory of a run end it for once it has begun, with
    a sentence on what stands."""
    from gipo_mc.parallel.news import record_error
    from gipo_mc.parallel.nodes.greeting import place
    from gipo_mc.parallel.runtime import lost_peer

    try:
        yield
    except BaseException as error:
        watch.close()
        if isinstance(error, KeyboardInterrupt):
            stands = watch.what_stands()
            _leave(watch, "failed", EXIT_INTERRUPTED, f"Interrupted by the user. {stands}")
            raise KeyboardInterrupt(f"{stands} {SAVES_FIRST}") from None
        lost = lost_peer(error, watch.what_stands()) if isinstance(error, RuntimeError) else None
        if lost is not None:
            raise _lost(error, lost, watch) from error
        raised = memory_ran_out(error) or error
        if isinstance(raised, DataError | NumericsError | OutOfMemoryError) and watch.begun:
            raised.args = (f"{raised}\n{watch.what_stands()}",)
        state, code, message = how_it_ended(raised)
        if state == "failed":
            record_error(code, message, place=place())
        _leave(watch, state, code, message)
        if _is_refusal(raised) and not watch.begun:
            watch.folder.take_back()
        if raised is error:
            raise
        raise raised from error
    watch.close()
    watch.write_status("done", 0)


def _lost(error: BaseException, lost: PeerError, watch: Watch) -> GipoError:
    """What to raise for a collective's error, once the status is written."""
    from gipo_mc.parallel.news import announced_end, first_error, record_error
    from gipo_mc.parallel.runtime import timed_out
    from gipo_mc.run.watch import show_stack

    if message := announced_end():
        _leave(watch, "requeue", EXIT_REQUEUE, message)
        return Requeue(message)
    # What another rank failed of says more than that it is gone.
    cause = first_error()
    code, message = (cause.exit_code, cause.message + cause.place) if cause else (lost.exit_code, str(lost))
    if timed_out(error):
        show_stack(traceback.format_tb(error.__traceback__))
        record_error(code, message, hang=True)
    _leave(watch, "failed", code, message)
    return lost


def _leave(watch: Watch, state: State, exit_code: int, message: str) -> None:
    """Write the status of a run that ends by an error. Where that cannot be written, the error still stands."""
    with _storage_said():
        watch.write_status(state, exit_code, message)


@contextmanager
def _storage_said() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        say_warning(str(error))


@contextmanager
def refusal_noted(folder: Callable[[], RunFolder]) -> Iterator[None]:
    """Around what comes before a run: a start that is refused leaves its status in the run folder it was meant for,
    where that was there before and no job has it, and a "done" of an earlier start does not stand for this one."""
    try:
        yield
    except BaseException as error:
        with _storage_said():
            meant = folder()
            if _is_refusal(error):
                meant.take_back()
            meant.note(*how_it_ended(error))
        raise


def _is_refusal(error: BaseException) -> bool:
    """Is it about what the start was given? The others are ends that the next start, or the user, is to learn of."""
    return isinstance(error, GipoError) and not isinstance(error, Requeue | PeerError)


def note_end(folder: Callable[[], RunFolder], state: State, exit_code: int, message: str) -> None:
    """Leave the status of a start that a signal ended before it came to run. Each rank does: the first to end is the
    end of the others, which may not have come to it."""
    with _storage_said():
        folder().note(state, exit_code, message)


def has_no_reader(stop: SystemExit) -> bool:
    """Is it rich's way to end a process whose standard output nobody reads any more?"""
    return isinstance(stop.__context__, BrokenPipeError)


def exit_called(stop: SystemExit) -> GipoError:
    """What is said of an exit() inside a run, which nothing here calls: whatever its code, it is no success."""
    frames = [frame for frame in traceback.extract_tb(stop.__traceback__) if "_sitebuiltins" not in frame.filename]
    where = frames[-1]
    return GipoError(
        f"exit({stop.code!r:.100}) was called at {where.filename}:{where.lineno}, in the middle of the run."
    )


def memory_ran_out(error: BaseException) -> OutOfMemoryError | None:
    """What is said of a failed allocation; None of other errors."""
    known = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
    if not known and not isinstance(error, MemoryError):
        return None
    said = str(error).split("\n")[0] or "an allocation failed"
    return OutOfMemoryError(
        f"Memory ran out ({said}): memory.recompute=full and memory.offload=[frozen] need less on a GPU, a smaller "
        "parallel.micro_batch_size, parallel.tokens_per_micro_batch or parallel.logit_rows needs less anywhere, and "
        "parallel.tensor and parallel.pipeline spread the model. gipo-mc plan counts what each of them saves."
    )


def how_it_ended(error: BaseException) -> tuple[State, int, str]:
    """State, exit code and message for run_status.json."""
    error = memory_ran_out(error) or error
    if isinstance(error, GipoError):
        return "requeue" if isinstance(error, Requeue) else "failed", error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return "failed", EXIT_INTERRUPTED, "Interrupted by the user."
    if isinstance(error, SystemExit):
        if has_no_reader(error):
            return "failed", EXIT_NO_READER, "Nobody reads the run's output any more: was it piped into head?"
        return "failed", GipoError.exit_code, str(exit_called(error))
    return "failed", 1, f"{type(error).__name__}: {error}"
