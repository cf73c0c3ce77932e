"""Exceptions a user can meet, each with the exit code that the commands return for it.

A message is a sentence for the user: what happened, where (file:line, rank, step), what to do.
"""

import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

#: Beginnings of the names of files: Python's library, code that is in none, this package.
_NOT_THE_USERS = (os.path.dirname(os.__file__), "<frozen ", os.path.dirname(__file__))


class GipoError(Exception):
    """Base of every error that a command turns into one clear message and an exit code."""

    exit_code = 1


class ConfigError(GipoError):
    """Bad configuration or command-line arguments; nothing was started."""

    exit_code = 2


class DataError(GipoError):
    """A data file is missing, malformed, or does not fit the tokenizer or the model."""

    exit_code = 3


@contextmanager
def users_code(name: str) -> Iterator[None]:
    """Around a call of a function of the user's: whatever it raises, SystemExit too, as a DataError that says where in
    the user's code; of a group of errors, the first. Errors of this program pass."""
    try:
        yield
    except GipoError:
        raise
    except (Exception, SystemExit) as error:  # exit(0) is no success
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):  # "1 sub-exception" says nothing
            first = first.exceptions[0]
        where = _last_line(first, error)
        said = f": {first}" if str(first) else ""
        raise DataError(f"{name} failed at {where.filename}:{where.lineno}: {type(first).__name__}{said}") from error


def _last_line(*errors: BaseException) -> traceback.FrameSummary:
    """The last line of the user's own code that an error passed: of the first error that passed any, or else the last
    line of all, in a library."""
    lines = [traceback.extract_tb(error.__traceback__) for error in errors]
    own = [line for found in lines for line in reversed(found) if not line.filename.startswith(_NOT_THE_USERS)]
    installed = ("site-packages", "dist-packages")
    outside = [line for line in own if not any(part in line.filename for part in installed)]
    return (outside or [line for found in lines for line in reversed(found)])[0]


class CheckpointError(GipoError):
    """No usable checkpoint: missing, damaged, or made for another model."""

    exit_code = 4


class NumericsError(GipoError):
    """Training was stopped because numbers stopped making sense (NaN, Inf, broken identity)."""

    exit_code = 5


class StorageError(GipoError):
    """Files could not be written: disk full, no permission, or the run folder is in use."""

    exit_code = 6


class PeerError(GipoError):
    """Another rank died, failed, or did not answer within the time-out."""

    exit_code = 7


class OutOfMemoryError(GipoError):
    """Memory ran out, of a GPU or of the host, at the start or in the middle of a run."""

    exit_code = 9


#: The job was asked to stop, and wants to be queued again: the same command continues it.
EXIT_REQUEUE = 75

#: Ctrl-C, as shells count it: 128 + SIGINT.
EXIT_INTERRUPTED = 130

#: The reader of a pipe has gone (`gipo-mc plan | head`), as shells count it: 128 + SIGPIPE.
EXIT_NO_READER = 141


class Requeue(GipoError):
    """No error: a signal asked the job to stop. The message says what was saved and what the same command will do."""

    exit_code = EXIT_REQUEUE


def did_you_mean(word: str, known: Iterable[str], most: int = 3) -> str:
    """The end of a sentence on a name that nobody knows, "; did you mean x or y?", of the nearest known ones; "" where
    none is near."""
    close = nearest(word, known, most)
    return f"; did you mean {' or '.join([', '.join(close[:-1]), close[-1]] if close[1:] else close)}?" if close else ""


def nearest(word: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that are most like a word, whatever its capitals. cutoff: from 0, anything, to 1, the same."""
    from difflib import get_close_matches

    names = {name.casefold(): name for name in known}
    word = word.casefold()
    if word == "gpu" and "cuda" in names:  # which looks more like cpu
        word = "cuda"
    return [names[word]] if word in names else [names[each] for each in get_close_matches(word, names, most, cutoff)]


def did_you_mean_path(name: str) -> str:
    """`did_you_mean` of a file or folder that is not there, among what lies beside it."""
    folder, slash, last = name.rstrip("/").rpartition("/")
    try:
        beside = os.listdir(os.path.expanduser(folder or slash or "."))
    except OSError:  # nothing is beside it
        return ""
    from difflib import get_close_matches

    # By the last part alone: what all share would make them all alike.
    close = get_close_matches(last, beside, n=1)
    return did_you_mean(name, [f"{folder}{slash}{close[0]}"]) if close else ""
