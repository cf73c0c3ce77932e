"""The options of every verb as tables: `python -m gipo_mc.tools.reference docs/commands.md` renews them on that page.

A table stands between `<!-- options of VERB -->` and `<!-- end of options -->`.
"""

from __future__ import annotations

import importlib
import re
import sys
from argparse import Action
from pathlib import Path

from gipo_mc.tools.command import GROUPS, VERBS
from gipo_mc.tools.complete import parsers_of

VERB_TABLE = "verbs"
_TABLE = re.compile(r"(<!-- options of (?P<name>[a-z -]+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def renewed(page: str) -> str:
    """The page with every table as the parsers are now. Raises KeyError where a table is of no verb."""
    return _TABLE.sub(lambda match: f"{match[1]}{table(match['name'])}{match[3]}", page)


def table(name: str) -> str:
    """The options of a verb or of one of its sub-commands ("evaluate judge"); of `VERB_TABLE`: all verbs."""
    if name == VERB_TABLE:
        rows = [f"| **{title}** | |\n" + "".join(map(_verb_row, verbs)) for title, verbs in GROUPS.items()]
        return "| verb | does |\n| --- | --- |\n" + "".join(rows)
    verb, _, own = name.partition(" ")
    parser = parsers_of(importlib.import_module(VERBS[verb].module))[own]
    rows = [row for action in parser._actions if (row := _row(action))]
    return "| option | meaning [default] |\n| --- | --- |\n" + "".join(rows)


def _verb_row(name: str) -> str:
    return f"| `gipo-mc {name}` | {VERBS[name].help} |\n"


def _row(action: Action) -> str:
    """ "" for --help and --quiet, which every verb has."""
    if {"--help", "--quiet"} & set(action.option_strings):
        return ""
    metavar = action.metavar or (action.dest.upper() if action.option_strings and action.nargs != 0 else action.dest)
    if action.choices and not action.metavar:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    value = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
    value = "" if action.nargs == 0 else value + (" ..." if action.nargs in ("+", "*") else "")
    shown = " ".join(filter(None, (", ".join(action.option_strings), value)))
    return f"| `{shown.replace('|', chr(92) + '|')}` | {(action.help or '').replace('|', chr(92) + '|')} |\n"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
