"""`gipo-mc`, which is `python -m gipo_mc` too; under torchrun: `torchrun --nproc-per-node 4 -m gipo_mc train gi-ppo`.

It imports next to nothing before it listens to Ctrl-C: what commands import takes up to a second, and an interrupt in
it is answered like one at any other time.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main(*verb: str) -> int:
    """Returns the exit code. verb: words that come before those of the command line, as of scripts/."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored, as behind nohup
    if ours:
        signal.signal(signal.SIGINT, _quit)
    from gipo_mc.tools.command import main as command

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command([*verb, *sys.argv[1:]])


def _quit(number: int, frame: FrameType | None) -> None:
    """Nothing has begun that would have to be undone. An exception might not get through: libraries in C make errors of
    their own of one that is raised while they are imported."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"\nInterrupted.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
