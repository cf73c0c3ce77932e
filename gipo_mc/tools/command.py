"""`gipo-mc`: the commands that the installed package has without a checkout of its scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gipo_mc.run.arguments import Parser
from gipo_mc.tools.evaluate import command as evaluate


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="gipo-mc", usage="%(prog)s evaluate COMMAND ...")
    parser.add_argument("command", choices=["evaluate"], help="compare responses: judges, people, tables")
    parser.parse_args(words[:1])
    return evaluate.main(words[1:], description=evaluate.__doc__, prog="gipo-mc evaluate")
