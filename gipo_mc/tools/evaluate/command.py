"""Who wins: responses of two policies or more to the same prompts, compared by models and by people.

    gipo-mc evaluate judge --ours ours.jsonl --against sft=sft.jsonl --judge judge.yaml --out runs/eval
    gipo-mc evaluate table runs/eval

Files of responses come from `gipo-mc generate --out`; docs/evaluation.md has the rest.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from gipo_mc.run.arguments import Parser
from gipo_mc.run.terminal.ending import ended

#: Sub-command -> what it does. Each is a module of this folder, imported when it is asked for.
COMMANDS = {
    "judge": "pair our responses with those of others, and have judges compare them",
    "page": "write one HTML page on which people compare them",
    "votes": "read the votes that people made on a page",
    "table": "win, tie and lose with intervals, by opponent, evaluator and domain",
    "export": "the table as CSV, Markdown, LaTeX or JSON",
}


def parsers() -> dict[str, Parser]:
    return {name: _parser_of(name) for name in COMMANDS}


def main(words: Sequence[str] | None = None) -> int:
    """Parse, do, and return the exit code."""
    return ended(lambda: _evaluate(list(sys.argv[1:] if words is None else words)))


def _evaluate(words: list[str]) -> int:
    listed = "\n".join(f"  {name:<8} {what}" for name, what in COMMANDS.items())
    parser = Parser(
        "evaluate",
        description=__doc__,
        usage="%(prog)s COMMAND ...",
        epilog=f"commands:\n{listed}\n\n%(prog)s COMMAND --help lists a command's options.",
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="one of those below")
    found, rest = parser.up_to_verb(words)
    code: int = _module(found.command).run(_parser_of(found.command).parse_args(rest))
    return code


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"gipo_mc.tools.evaluate.{name}")


def _parser_of(name: str) -> Parser:
    module = _module(name)
    parser = Parser(f"evaluate {name}", reports=True, description=module.__doc__)
    module.add_arguments(parser)
    return parser
