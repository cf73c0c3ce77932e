"""`gipo-mc`: the commands that the installed package has without a checkout of its scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gipo_mc.run.arguments import Parser
from gipo_mc.tools import config
from gipo_mc.tools.dry_run import command as dry_run
from gipo_mc.tools.evaluate import command as evaluate

_COMMANDS = {"evaluate": evaluate, "dry-run": dry_run, "config": config}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="gipo-mc", usage="%(prog)s COMMAND ...")
    parser.add_argument(
        "command", choices=list(_COMMANDS), help="evaluate: judges, people, tables; dry-run: a start without its GPUs"
    )
    chosen = parser.parse_args(words[:1]).command
    module = _COMMANDS[chosen]
    return module.main(words[1:], description=module.__doc__, prog=f"gipo-mc {chosen}")
