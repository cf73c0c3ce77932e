"""How a run ended, left in run_status.json and told to the other ranks, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gipo_mc.errors import EXIT_INTERRUPTED, GipoError
from gipo_mc.parallel.news import first_error, record_error
from gipo_mc.parallel.runtime import lost_peer


@contextmanager
def outcome_kept(write_status: Callable[..., None]) -> Iterator[None]:
    """Around a run. write_status: called at its end with state, exit code and message."""
    try:
        yield
        write_status("done", 0)
    except GipoError as error:
        record_error(error.exit_code, str(error))
        write_status("failed", error.exit_code, str(error))
        raise
    except KeyboardInterrupt:
        write_status("failed", EXIT_INTERRUPTED, "interrupted by the user")
        raise
    except BaseException as error:
        code, message = 1, f"{type(error).__name__}: {error}"
        lost = lost_peer(error) if isinstance(error, RuntimeError) else None
        if lost:
            # What another rank failed of says more than that it is gone.
            cause = first_error()
            code, message = (cause.exit_code, cause.message) if cause else (lost.exit_code, str(lost))
        else:
            record_error(code, message)
        write_status("failed", code, message)
        raise
