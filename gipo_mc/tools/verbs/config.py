"""Look at configurations: what one says and why, how two differ, whether one is right; and their keys for editors.

gipo-mc config show configs/hh_tiny.yaml run.iterations=5 --only-changed
gipo-mc config diff configs/hh_tiny.yaml runs/hh_tiny
gipo-mc config check configs/hh_tiny.yaml --for gi-ppo --ranks 2
gipo-mc config schema sft
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gipo_mc.errors import ConfigError
from gipo_mc.run.arguments import Parser, name, number
from gipo_mc.run.terminal.ending import ended

if TYPE_CHECKING:
    from gipo_mc.config.explain.origins import Shown

_KINDS = ("gi-ppo", "sft", "reward", "dpo")
_ON_RESUME = {
    "fixed": "fixed: a run that continues keeps it",
    "changeable": "may change when a run continues",
    "content": "may be moved or renamed when a run continues, with the same content",
    "unknown": "no key of this version",
}


def parsers() -> dict[str, Parser]:
    return {verb: _parser_of(verb) for verb in _VERBS}


def main(words: Sequence[str] | None = None) -> int:
    """Parse and do; returns the exit code."""
    return ended(lambda: _config(list(sys.argv[1:] if words is None else words)))


def _config(words: list[str]) -> int:
    lines = [f"  {verb:<10} {text}" for verb, (text, _, _) in _VERBS.items()]
    front = Parser("config", description=__doc__, epilog="\n".join(lines), usage="%(prog)s VERB ...")
    front.add_argument("verb", choices=list(_VERBS), metavar="VERB", help=", ".join(_VERBS))
    found, rest = front.up_to_verb(words)
    return _VERBS[found.verb][2](_parser_of(found.verb).parse_intermixed_args(rest))


def _parser_of(verb: str) -> Parser:
    text, add_arguments, _ = _VERBS[verb]
    parser = Parser(f"config {verb}", description=f"{text[0].upper()}{text[1:]}.")
    add_arguments(parser)
    return parser


def _of_show(parser: Parser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="FILE", help="a file or a run's folder, and key.sub=value overrides"
    )
    parser.add_argument("--only-changed", action="store_true", help="only what is not the default")
    _of_all(parser)


def _of_diff(parser: Parser) -> None:
    parser.add_argument("before", type=name, metavar="A", help="a file or a run's folder")
    parser.add_argument("after", type=name, metavar="B", help="another")
    _of_all(parser)


def _of_check(parser: Parser) -> None:
    parser.add_argument("words", nargs="+", metavar="FILE", help="a file, key.sub=value overrides, or both")
    parser.add_argument("--ranks", type=number(1, 10**6), default=0, help="ranks to be started [as few as are needed]")
    parser.add_argument(
        "--no-files", action="store_true", help="do not look at the models, data and functions that it names"
    )
    _of_all(parser)


def _of_all(parser: Parser) -> None:
    parser.add_argument("--for", dest="kind", choices=_KINDS, help="the trainer that is to read it [any]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _of_schema(parser: Parser) -> None:
    parser.add_argument("kind", nargs="?", choices=_KINDS, default="gi-ppo", help="of which trainer [gi-ppo]")
    parser.add_argument("--write", action="store_true", help="renew the committed files of all trainers instead")


def _of_reference(parser: Parser) -> None:
    parser.add_argument("--write", type=name, metavar="PAGE", help="renew the tables of this page instead")


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """(file or None, overrides) of the words of a command line."""
    from gipo_mc.config.explain.origins import config_of

    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise _error(f"One file at a time, not {' and '.join(files)}: gipo-mc config diff compares two.")
    return (config_of(files[0]) if files else None), [word for word in words if "=" in word]


def _error(text: str) -> ConfigError:
    return ConfigError(text)


def _command(arguments: argparse.Namespace) -> str:
    return f"train_{arguments.kind.replace('-', '_')}" if arguments.kind else ""


# ------------------------------------------------------------------------------------------------------------- show
def _show(arguments: argparse.Namespace) -> int:
    from gipo_mc.config import names_nothing, read_by
    from gipo_mc.config.explain.origins import shown_values

    path, overrides = _split(arguments.words)
    command = _command(arguments)
    base = None
    if command and names_nothing(path, overrides):
        from gipo_mc.tools.start_checks import BASES

        base = BASES[command]()
    reads = set(read_by(command))
    shown = [value for value in shown_values(path, overrides, base) if value.key in reads]
    if arguments.only_changed:
        shown = [value for value in shown if value.value != value.default]
    if arguments.json:
        found = {v.key: {"value": v.value, "default": v.default, "origin": v.origin} for v in shown}
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print("\n".join(_as_yaml(shown)))
    return 0


def _as_yaml(shown: list[Shown]) -> Iterator[str]:
    """A file that says the same, with the origin of each value behind it."""
    from omegaconf import OmegaConf

    before = ""
    for value in shown:
        section, _, option = value.key.rpartition(".")
        if section and section != before:
            yield f"{section}:"
        before = section
        first, *rest = OmegaConf.to_yaml(OmegaConf.create({option: value.value})).splitlines()
        indent = "  " if section else ""
        yield f"{indent}{first}  # {value.origin}"
        yield from (f"{indent}{line}" for line in rest)


# ------------------------------------------------------------------------------------------------------------- diff
def _diff(arguments: argparse.Namespace) -> int:
    from gipo_mc.config import verb_of
    from gipo_mc.config.explain.origins import differences

    theirs = [_command_of(arguments.before), _command_of(arguments.after)]
    apart = all(theirs) and theirs[0] != theirs[1]
    command = _command(arguments) or ("" if apart else theirs[0] or theirs[1])
    found = differences(arguments.before, arguments.after, command)
    unread = len(found)
    found = [one for one in found if one.rule != "unread"]
    unread -= len(found)
    fixed = sum(one.rule == "fixed" for one in found)
    if arguments.json:
        rows = {one.key: {"before": one.before, "after": one.after, "on_resume": one.rule} for one in found}
        print(json.dumps({"command": command, "differences": rows, "may_continue": not (fixed or apart)}, indent=2))
        return 0
    for one in found:
        _print(f"{one.key}: {one.before!r} -> {one.after!r}  ({_ON_RESUME[one.rule]})")
    if unread:
        print(f"({unread} more that {command} does not read)")
    if apart:
        first, second = (f"gipo-mc {verb_of(command)}" for command in theirs)
        print(f"The first is a run of {first}, the second of {second}: neither continues the other.")
    elif not found:
        print("No option differs.")
    elif fixed:
        print(f"A run of the first would not continue with the second: {fixed} of {len(found)} options are fixed.")
    else:
        print(f"A run of the first may continue with the second: none of the {len(found)} options is fixed.")
    return 0


def _command_of(place: str) -> str:
    """The command of a run's folder; "" where it is none or does not say."""
    from gipo_mc.run.folder import RunFolder

    return str(RunFolder(place).read_status().get("command") or "")


# ------------------------------------------------------------------------------------------------------------ check
def _check(arguments: argparse.Namespace) -> int:
    from gipo_mc.tools.start_checks import start_problems

    path, overrides = _split(arguments.words)
    found = start_problems(path, overrides, _command(arguments), arguments.ranks, files=not arguments.no_files)
    notes = [text for text, code in found if not code]
    problems = [text for text, code in found if code]
    code = min((code for _, code in found if code), default=0)
    if arguments.json:
        print(json.dumps({"file": path, "problems": problems, "notes": notes, "exit_code": code}, indent=2))
        return code
    for text in (*problems, *(f"note: {note}" for note in notes)):
        _print(f"- {text}", file=sys.stderr)
    what = f"gipo-mc train {arguments.kind}" if arguments.kind else "the trainers"
    count = len(problems)
    checked = path or "This command line"
    seen = f"{checked} is right for {what}{', as far as the notes go' if notes else ''}."
    _print(f"{checked}: {count} problem{'s' * (count > 1)}" if count else seen)
    return code


# ------------------------------------------------------------------------------------------------- schema, reference
def _schema(arguments: argparse.Namespace) -> int:
    from gipo_mc.config.explain.json_schema import KINDS, schema_file, schema_text

    if not arguments.write:
        print(schema_text(arguments.kind), end="")
        return 0
    for kind in KINDS:
        schema_file(kind).parent.mkdir(exist_ok=True)
        schema_file(kind).write_text(schema_text(kind), encoding="utf-8")
        print(schema_file(kind))
    return 0


def _reference(arguments: argparse.Namespace) -> int:
    from gipo_mc.config.explain.reference import reference_lines, write_reference

    if arguments.write:
        write_reference(Path(arguments.write))
    else:
        print("\n".join(reference_lines()))
    return 0


def _print(text: str, file: TextIO | None = None) -> None:
    from gipo_mc.run.jsonl import printable_lines

    print(printable_lines(text), file=file or sys.stdout)


#: Verb -> what it shows, what it takes, what does it.
_VERBS: dict[str, tuple[str, Callable[[Parser], None], Callable[[argparse.Namespace], int]]] = {
    "show": ("the whole configuration, with the origin of each value", _of_show, _show),
    "diff": ("the options of which two configurations have different values", _of_diff, _diff),
    "check": ("everything that a start would refuse, without starting", _of_check, _check),
    "schema": ("the JSON Schema that editors read", _of_schema, _schema),
    "reference": ("all keys as Markdown", _of_reference, _reference),
}
