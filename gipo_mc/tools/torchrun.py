"""`torchrun`, ended as this package's commands end: `python -m gipo_mc.tools.torchrun` takes its words.

torchrun itself ends with a traceback after Ctrl-C and after a rank's error, whose own sentence stands above it then,
and with exit code 1 whatever the rank's was. Here the code is that of the rank that failed first.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from gipo_mc.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, PeerError
from gipo_mc.run.terminal.ending import ended


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, that of the first rank that failed, 130 after Ctrl-C, 75 after another signal that
    asked to stop, or 7 where the nodes did not meet."""
    return ended(lambda: _launch(list(sys.argv[1:] if words is None else words)))


def _launch(words: list[str]) -> int:
    # Ranks that share a machine's cores do best with one thread each; torchrun would say so at every start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    for name in ("multiprocessing.api", "agent.server.api"):  # which say what the ranks have said
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        run(parse_args(words))
    except SignalException as stop:
        return EXIT_INTERRUPTED if stop.sigval == signal.SIGINT else EXIT_REQUEUE
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except RendezvousError as error:
        raise PeerError(
            f"The nodes did not meet ({error}): is HOST:PORT of --rdzv-endpoint one that all of them reach, and was "
            "the command started on each?"
        ) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
