"""scripts/evaluate.py and `gipo-mc evaluate`: which sub-command there is, and how it ends."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from gipo_mc.errors import EXIT_INTERRUPTED, GipoError
from gipo_mc.run.arguments import Parser, say_error
from gipo_mc.run.jsonl import printable_lines

#: Sub-command -> what it does. Each is a module of this folder, imported when it is asked for.
COMMANDS = {
    "judge": "pair our responses with those of others, and have judges compare them",
    "page": "write one HTML page on which people compare them",
    "votes": "read the votes that people made on a page",
    "table": "win, tie and lose with intervals, by opponent, evaluator and domain",
    "export": "the table as CSV, Markdown, LaTeX or JSON",
}


def main(argv: Sequence[str] | None = None, description: str | None = None, prog: str | None = None) -> int:
    """Parse, do, and return the exit code. description: the help's head; prog: the command as it was typed."""
    words = list(sys.argv[1:] if argv is None else argv)
    listed = "\n".join(f"  {name:<8} {what}" for name, what in COMMANDS.items())
    parser = Parser(
        prog=prog,
        description=description,
        usage="%(prog)s COMMAND ...",
        epilog=f"commands:\n{listed}\n\n%(prog)s COMMAND --help lists a command's options.",
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="one of those below")
    chosen = parser.parse_args(words[:1]).command
    module = importlib.import_module(f"gipo_mc.tools.evaluate.{chosen}")
    own = Parser(prog=f"{parser.prog} {chosen}", description=module.__doc__)
    module.add_arguments(own)
    arguments = own.parse_args(words[1:])
    try:
        code: int = module.run(arguments)
    except GipoError as error:
        return say_error(error)
    except KeyboardInterrupt as stop:
        print(f"\n{printable_lines(f'Interrupted. {stop}'.strip())}", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    return code
