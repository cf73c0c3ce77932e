"""`gipo-mc`, which is `python -m gipo_mc` too; under torchrun: `torchrun --nproc-per-node 4 -m gipo_mc train gi-ppo`.

It imports next to nothing before it listens to Ctrl-C: what every command imports takes a fifth of a second, and more
on a busy machine.
"""

from __future__ import annotations

import sys

from gipo_mc.run.terminal.ctrl_c import ends_at_once


def main(*verb: str) -> int:
    """Returns the exit code. verb: words that come before those of the command line, as of scripts/."""
    with ends_at_once():
        from gipo_mc.tools.command import main as command

    return command([*verb, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
